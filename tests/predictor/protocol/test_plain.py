"""predictor.protocol.plain: the clients of the two older services are served as they were."""

import base64
import json
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import errors
from predictor.errors import BadRequest, PredictorError
from predictor.protocol import Clip, plain
from predictor.protocol.multipart import File, Form
from predictor.protocol.plain import AsrAsked, Upload
from predictor.transcript import Transcript, Word

HELLO = Transcript("xin chào", "vi", 1.25, (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8)))
SILENCE = Transcript("", None, 2.0, ())
ITEM = {"audio_base64": base64.b64encode(b"RIFF").decode()}


def form(**fields):
    return Form({name: [text] for name, text in fields.items()}, {"file": File("a.wav", "", memoryview(b"RIFF"))})


def read_asr(value):
    return plain.read_asr(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("fields", "upload"),
    [
        ({}, Upload(Clip(b"RIFF"), "")),
        ({"model": "", "language": "", "model_type": ""}, Upload(Clip(b"RIFF"), "")),
        (
            {"model": "phowhisper-tiny-ctc", "language": "vi", "model_type": "pytorch"},
            Upload(Clip(b"RIFF", "vi"), "phowhisper-tiny-ctc"),
        ),
        ({"model_type": "onnx", "hotwords": "Huế, Phở"}, Upload(Clip(b"RIFF", None, ("Huế", "Phở")), "")),
    ],
)
def test_the_form_of_transcribe_is_read(fields, upload):
    assert plain.read_transcribe(form(**fields)) == upload


@pytest.mark.parametrize(
    ("asked", "named"),
    [(form(model_type="gguf"), "model_type"), (Form({}, {}), "file"), (Form({"file": ["x"]}, {}), "file")],
)
def test_a_refusal_of_transcribe_names_the_field(asked, named):
    with pytest.raises(BadRequest, match=named):
        plain.read_transcribe(asked)


def test_the_answer_of_transcribe_has_the_old_services_fields():
    body = plain.write_transcribe(HELLO, processing_seconds=0.125, model="m", trace_id="t")
    value = json.loads(body)
    assert list(value) == [
        "id", "text", "duration", "processing_time", "real_time_factor", "language", "model", "timestamp", "trace_id",
    ]  # fmt: skip
    UUID(value.pop("id"))
    assert datetime.fromisoformat(value.pop("timestamp")).utcoffset().seconds == 0
    assert value == {
        "text": "xin chào",
        "duration": 1.25,
        "processing_time": 0.125,
        "real_time_factor": 0.1,
        "language": "vi",
        "model": "m",
        "trace_id": "t",
    }


@pytest.mark.parametrize("wrap", [lambda i: [i], lambda i: {"inputs": [i]}, lambda i: {"dataframe_records": [i]}])
def test_a_list_may_come_in_three_ways(wrap):
    item = ITEM | {"lang": "hi", "decoding": "greedy", "hotwords": "Huế"}
    assert read_asr(item) == AsrAsked([Clip(b"RIFF", "hi", ("Huế",))], ["greedy"], several=False)
    assert read_asr(wrap(item)) == AsrAsked([Clip(b"RIFF", "hi", ("Huế",))], ["greedy"], several=True)


def test_language_and_decoding_may_be_left_out():
    assert (
        read_asr(ITEM)
        == read_asr(ITEM | {"lang": None, "decoding": None})
        == AsrAsked([Clip(b"RIFF")], ["ctc"], several=False)
    )


def test_a_decoding_is_kept_for_the_answer_and_told_the_recognizer():
    asked = [read_asr(ITEM | {"decoding": decoding}) for decoding in ("ctc", "greedy", "rnnt")]
    assert [each.decodings for each in asked] == [["ctc"], ["greedy"], ["rnnt"]]
    assert [each.clips[0].decoding for each in asked] == ["ctc", "ctc", "rnnt"]


def test_a_request_holds_one_to_64_recordings():
    assert len(read_asr([ITEM] * 64).clips) == 64
    for count in (0, 65):
        with pytest.raises(BadRequest, match="1 to 64"):
            read_asr([ITEM] * count)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (None, "audio_base64"),
        ("x", "audio_base64"),
        ({}, "audio_base64"),
        ({"inputs": 3}, "audio_base64"),
        ({"inputs": ["AA=="]}, "[0].audio_base64"),
        ([ITEM, {}], "[1].audio_base64"),
        ([0.5] * 20_000, "audio_base64"),
        ({"audio_base64": "*"}, "audio_base64"),
        ({"audio_base64": ["AA=="]}, "audio_base64"),
        (ITEM | {"lang": 3}, "language"),
        (ITEM | {"hotwords": 3}, "hotwords"),
        (ITEM | {"decoding": 3}, "decoding"),
        (ITEM | {"decoding": ["ctc"]}, "decoding"),
        (ITEM | {"decoding": "x" * 10_000}, "ctc, greedy"),
    ],
)
def test_a_refusal_of_asr_names_the_field(body, named):
    with pytest.raises(BadRequest) as caught:
        read_asr(body)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 200


WORDS = st.sampled_from(["audio_base64", "lang", "decoding", "hotwords", "inputs", "dataframe_records", "AA==", "ctc"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(
    body=st.binary(max_size=50)
    | (JSON | JSON.map(lambda value: ITEM | {"decoding": value})).map(json.dumps).map(str.encode)
)
def test_any_body_is_read_or_refused(body):
    try:
        asked = plain.read_asr(body)
    except PredictorError as error:
        told = str(error)
    else:
        told = ""
        assert len(asked.clips) == len(asked.decodings)
    assert len(told) < 200


def test_one_answer_is_an_object_and_several_are_a_list():
    hello = {
        "transcription": "xin chào",
        "lang": "vi",
        "decoding": "ctc",
        "duration_seconds": 1.25,
        "words": [
            {"text": "xin", "start_seconds": 0.1, "end_seconds": 0.4, "confidence": 0.9},
            {"text": "chào", "start_seconds": 0.5, "end_seconds": 1.0, "confidence": 0.8},
        ],
    }
    silence = {"transcription": "", "lang": None, "decoding": "greedy", "duration_seconds": 2.0, "words": []}
    assert json.loads(plain.write_asr(AsrAsked([], ["ctc"], several=False), [HELLO])) == hello
    assert json.loads(plain.write_asr(AsrAsked([], ["ctc"], several=True), [HELLO])) == [hello]
    assert json.loads(plain.write_asr(AsrAsked([], ["ctc", "greedy"], several=True), [HELLO, SILENCE])) == [
        hello,
        silence,
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRequest("x"), "INVALID_REQUEST"),
        (errors.InvalidAudio("x"), "INVALID_AUDIO"),
        (errors.UnsupportedAudio("x"), "UNSUPPORTED_AUDIO"),
        (errors.AudioTooLong(1), "AUDIO_TOO_LONG"),
        (errors.InferenceFailed(), "INFERENCE_FAILED"),
        (None, "INVALID_REQUEST"),
    ],
)
def test_an_error_has_a_code_that_stays(error, code):
    assert plain.asr_error(error, "what was wrong") == {"error_code": code, "message": "what was wrong"}


def test_every_error_of_a_caller_has_a_code_of_its_own():
    kinds = [kind for kind in PredictorError.__subclasses__() if kind.__module__ == "predictor.errors"]
    codes = {plain._CODES[kind] for kind in kinds}
    assert len(codes) == len(kinds)
