"""predictor.protocol.tensors and .samples: what any client may send is read, or refused in a sentence that names it."""

import base64
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import BadRequest
from predictor.protocol import MAX_CLIPS, Clip, Pcm
from predictor.protocol.payload import parse_json
from predictor.protocol.tensors import INPUTS, OUTPUTS, OutputTensor, Tensor, outputs, read_tensors
from predictor.transcript import Transcript, Word

HELLO = Transcript("xin chào", "vi", 1.25, (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8)))
SILENCE = Transcript("", None, 2.0, ())
LONG = "x" * 10_000


def encoded(data):
    return base64.b64encode(data).decode()


def audio(*files, shape=None):
    """An `audio` tensor as JSON carries it."""
    return Tensor("audio", "BYTES", (len(files),) if shape is None else shape, [encoded(f) for f in files], None)


def texts(name, *values):
    return Tensor(name, "BYTES", (len(values),), list(values), None)


def raw(*elements):
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def samples(array, **parameters):
    kind = {"f": "FP32", "i": "INT16", "u": "UINT8"}[array.dtype.kind]
    return Tensor("audio", kind, array.shape, None, memoryview(array.tobytes()), parameters)


def contents(array):
    """The numbers as a gRPC message of KServe's holds them."""
    from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferTensorContents

    name = {"f": "fp32_contents", "i": "int_contents", "u": "uint_contents"}[array.dtype.kind]
    return getattr(InferTensorContents(**{name: array.ravel().tolist()}), name)


def refusal(tensors, parameters):
    with pytest.raises(BadRequest) as caught:
        read_tensors(tensors, parameters)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def reads_or_refuses(read, *arguments):
    try:
        return read(*arguments)
    except BadRequest as error:
        told = str(error)
    assert len(told) < 300
    return None


FILES = st.lists(st.tuples(st.binary(max_size=20), st.none() | st.text(min_size=1, max_size=5)), min_size=1, max_size=5)


@given(FILES)
def test_json_clips_are_read_as_they_were_sent(files):
    tensors = [audio(*(data for data, _ in files)), texts("language", *(code for _, code in files))]
    assert read_tensors(tensors, {}) == [Clip(*file) for file in files]


def test_bytes_from_grpc_are_files_and_not_base64():
    tensor = Tensor("audio", "BYTES", (2,), [b"AA==", b"\xff"], None)
    assert read_tensors([tensor], {}) == [Clip(b"AA=="), Clip(b"\xff")]


@pytest.mark.parametrize(("shape", "nested"), [((2, 1), [["AA=="], ["AQ=="]]), ((1, 2), [["AA==", "AQ=="]])])
def test_nested_elements_are_read_in_row_major_order(shape, nested):
    clips = read_tensors([Tensor("audio", "BYTES", shape, nested, None)], {})
    assert [clip.data for clip in clips] == [b"\0", b"\1"]


def test_elements_may_be_nested_deeper_than_the_interpreter_recurses():
    nested = "AA=="
    for _ in range(100_000):
        nested = [nested]
    assert read_tensors([Tensor("audio", "BYTES", (1,), nested, None)], {}) == [Clip(b"\0")]


@pytest.mark.parametrize(
    ("tensor", "parameters", "codes"),
    [
        (None, {}, [None, None, None]),
        (None, {"language": "vi"}, ["vi", "vi", "vi"]),
        (None, {"language": ""}, [None, None, None]),
        (texts("language", "hi"), {}, ["hi", "hi", "hi"]),
        (texts("language", "hi"), {"language": "vi"}, ["hi", "hi", "hi"]),
        (texts("language", "hi", "", "vi"), {}, ["hi", None, "vi"]),
        (Tensor("language", "BYTES", (1,), None, raw(b"vi")), {}, ["vi", "vi", "vi"]),
        (Tensor("language", "BYTES", (1,), None, raw(b"\xff")), {}, ["\N{REPLACEMENT CHARACTER}"] * 3),
    ],
)
def test_one_language_holds_for_every_clip_and_several_for_one_each(tensor, parameters, codes):
    tensors = [audio(b"1", b"2", b"3"), *([tensor] if tensor else [])]
    assert [clip.language for clip in read_tensors(tensors, parameters)] == codes


@pytest.mark.parametrize(
    ("tensor", "parameters", "hotwords"),
    [
        (None, {}, [(), ()]),
        (None, {"hotwords": "Huế, Đà Lạt"}, [("Huế", "Đà Lạt")] * 2),
        (None, {"hotwords": ["Huế", "Đà Lạt"]}, [("Huế", "Đà Lạt")] * 2),
        (texts("hotwords", "Huế"), {"hotwords": "Đà Lạt"}, [("Huế",)] * 2),
        (texts("hotwords", "Huế", ""), {}, [("Huế",), ()]),
        (Tensor("hotwords", "BYTES", (1,), None, raw("Huế".encode())), {}, [("Huế",)] * 2),
    ],
)
def test_hotwords_are_for_every_clip_or_for_one_each(tensor, parameters, hotwords):
    tensors = [audio(b"1", b"2"), *([tensor] if tensor else [])]
    assert [clip.hotwords for clip in read_tensors(tensors, parameters)] == hotwords


@pytest.mark.parametrize("as_raw", [False, True])
def test_a_request_holds_one_to_64_clips(as_raw):
    def read(*files):
        tensor = Tensor("audio", "BYTES", (len(files),), None, raw(*files)) if as_raw else audio(*files)
        return read_tensors([tensor], {})

    assert MAX_CLIPS == 64
    assert len(read(*[b"x"] * 64)) == 64
    for count in (0, 65):
        with pytest.raises(BadRequest, match="64"):
            read(*[b"x"] * count)


ARRAYS = [
    np.linspace(-1, 1, 40, dtype=np.float32),
    np.linspace(-32768, 32767, 40).astype(np.int16),
    np.arange(216, 256, dtype=np.uint8),
]


@pytest.mark.parametrize("shape", [(40,), (1, 40), (4, 10)])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: a.dtype.name)
@pytest.mark.parametrize("carrier", ["raw", "json", "list", "grpc"])
def test_samples_are_read_from_every_carrier_as_they_were_sent(array, shape, carrier):
    array = array.reshape(shape)
    tensor = samples(array, sample_rate=8000)
    if carrier != "raw":
        values = {
            "json": json.loads(json.dumps(array.tolist())),
            "list": array.ravel().tolist(),
            "grpc": contents(array),
        }
        tensor = Tensor("audio", tensor.datatype, shape, values[carrier], None, {"sample_rate": 8000})
    clips = read_tensors([tensor], {"language": "vi"})
    assert [clip.language for clip in clips] == ["vi"] * (shape[0] if len(shape) == 2 else 1)
    assert np.array_equal(np.stack([clip.data.samples for clip in clips]), array.reshape(len(clips), -1))
    assert {clip.data.rate_hz for clip in clips} == {8000}
    assert {clip.data.samples.dtype for clip in clips} == {array.dtype}


def test_raw_samples_are_views_of_the_body_wherever_they_start_in_it():
    body = b"x" + np.arange(100, dtype=np.float32).tobytes()
    tensor = Tensor("audio", "FP32", (100,), None, memoryview(body)[1:])
    ((samples_),) = [clip.data.samples for clip in read_tensors([tensor], {})]
    assert samples_.base is not None
    assert np.shares_memory(samples_, np.frombuffer(body, np.uint8))
    assert samples_[99] == 99


def test_long_lists_of_json_become_samples():
    wanted = (np.sin(np.arange(160_000) / 9) / 3).astype(np.float32)
    value = parse_json(json.dumps({"flat": wanted.tolist(), "rows": wanted.reshape(2, -1).tolist()}).encode())
    (one,) = read_tensors([Tensor("audio", "FP32", (160_000,), value["flat"], None)], {})
    assert np.array_equal(one.data.samples, wanted)
    assert one.data.rate_hz == 16_000
    two = read_tensors([Tensor("audio", "FP32", (2, 80_000), value["rows"], None)], {})
    assert np.array_equal(np.concatenate([clip.data.samples for clip in two]), wanted)


@pytest.mark.parametrize(
    ("tensor_says", "request_says", "rate_hz"),
    [({}, {}, 16_000), ({}, {"sample_rate": 44_100}, 44_100), ({"sample_rate": 8000}, {"sample_rate": 44_100}, 8000)]
    + [({"sample_rate": said}, {}, 48_000) for said in (48_000, 48_000.0, "48000")],
)
def test_the_sample_rate_is_the_tensors_or_the_requests_or_16_khz(tensor_says, request_says, rate_hz):
    (clip,) = read_tensors([samples(ARRAYS[0], **tensor_says)], request_says)
    assert clip.data.rate_hz == rate_hz


@pytest.mark.parametrize(
    "said",
    [
        0,
        -1,
        7999,
        192_001,
        16_000.5,
        math.nan,
        math.inf,
        True,
        "16 kHz",
        "",
        "٤٨٠٠٠",
        "9" * 5_000,
        [16_000],
        {},
        10**30,
    ],
)
def test_a_sample_rate_that_is_none_is_refused(said):
    assert "sample_rate" in refusal([samples(ARRAYS[0], sample_rate=said)], {})


def test_uint8_without_a_sample_rate_is_a_file():
    data = b"RIFF....WAVE"
    (clip,) = read_tensors([Tensor("audio", "UINT8", (len(data),), None, data)], {})
    assert clip.data == data
    clips = read_tensors([Tensor("audio", "UINT8", (2, 6), [list(data[:6]), list(data[6:])], None)], {})
    assert [bytes(clip.data) for clip in clips] == [data[:6], data[6:]]
    (clip,) = read_tensors([Tensor("audio", "UINT8", (len(data),), None, data)], {"sample_rate": 8000})
    assert isinstance(clip.data, Pcm)


BYTES = {"datatype": "BYTES", "shape": (1,), "values": None, "raw": None}


@pytest.mark.parametrize(
    ("tensors", "parameters", "fields"),
    [
        ([], {}, ["audio", "missing"]),
        ([texts("language", "vi")], {}, ["audio", "missing"]),
        ([Tensor(LONG, **BYTES)], {}, ["xxx", "audio", "language", "hotwords"]),
        ([audio(b"1"), audio(b"1")], {}, ["same name"]),
        ([Tensor("audio", "FP64", (1,), [0.5], None)], {}, ["audio", "FP64", "BYTES", "FP32"]),
        ([Tensor("audio", LONG, (1,), [0.5], None)], {}, ["audio", "BYTES"]),
        ([Tensor("audio", "BYTES", (2,), ["AA=="], None)], {}, ["audio", "[2]", "1 elements"]),
        ([Tensor("audio", "BYTES", (0,), [], None)], {}, ["audio", "[0]"]),
        ([Tensor("audio", "BYTES", (10**4_000,) * 8, ["AA=="], None)], {}, ["audio", "shape"]),
        ([Tensor("audio", "BYTES", (1,) * 10_000, ["AA=="], None)], {}, ["audio", "shape"]),
        ([Tensor("audio", "BYTES", (1,), [7], None)], {}, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), [{"b64": "AA=="}], None)], {}, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), [LONG + "*"], None)], {}, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\1\0\0")], {}, ["audio", "length"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\2\0\0\0x")], {}, ["audio", "2 bytes"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\xff\xff\xff\xff")], {}, ["audio", "4294967295 bytes"]),
        ([Tensor("audio", "BYTES", (2,), None, raw(b"x"))], {}, ["audio", "[2]", "1 elements"]),
        ([audio(b"1", b"2", b"3"), texts("language", "vi", "hi")], {}, ["language", "2", "3"]),
        ([audio(b"1", b"2", b"3"), texts("hotwords", "vi", "hi")], {}, ["hotwords", "2", "3"]),
        ([audio(b"1"), texts("language", 5)], {}, ["language"]),
        ([audio(b"1"), Tensor("language", "INT8", (1,), [1], None)], {}, ["language", "INT8"]),
        ([audio(b"1")], {"language": ["vi"]}, ["language"]),
        ([audio(b"1")], {"language": 0}, ["language"]),
        ([audio(b"1")], {"hotwords": [1]}, ["hotwords"]),
        ([audio(b"1")], {"decoding": [1]}, ["decoding"]),
        ([audio(b"1")], {"decoding": "beam"}, ["decoding", "beam", "ctc, greedy, rnnt"]),
        ([Tensor("audio", "FP32", (), None, b"")], {}, ["audio", "[N]"]),
        ([Tensor("audio", "FP32", (1, 1, 1), None, b"1234")], {}, ["audio", "[N]"]),
        ([Tensor("audio", "FP32", (65, 1), None, b"1234" * 65)], {}, ["audio", "64 clips"]),
        ([Tensor("audio", "FP32", (0, 1), None, b"")], {}, ["audio", "64 clips"]),
        ([Tensor("audio", "FP32", (0,), None, b"")], {}, ["audio", "0 samples"]),
        ([Tensor("audio", "FP32", (2, 0), [], None)], {}, ["audio", "0 samples"]),
        ([Tensor("audio", "FP32", (1,), None, b"12345")], {}, ["audio", "5 bytes", "4"]),
        ([Tensor("audio", "FP32", (2,), None, b"1234")], {}, ["audio", "1 samples", "[2]"]),
        ([Tensor("audio", "FP32", (10**4_000,), None, b"1234")], {}, ["audio", "shape"]),
        ([Tensor("audio", "FP32", (64, 10**4_000), [0.5], None)], {}, ["audio", "shape"]),
        ([Tensor("audio", "INT16", (1,), [0.5], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "INT16", (1,), [32_768], None)], {}, ["audio", "32767"]),
        ([Tensor("audio", "UINT8", (1,), [-1], None)], {}, ["audio", "255"]),
        ([Tensor("audio", "FP32", (2,), [0.5, "x"], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (2,), [0.5, None], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (1,), [10**30], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (1,), [True], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (2,), [[0.5], 0.5], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (2,), [0.5, [0.5]], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (2,), [memoryview(b"12")], None)], {}, ["audio", "numbers"]),
        ([Tensor("audio", "FP32", (2,), [[memoryview(b"12")]], None)], {}, ["audio", "numbers"]),
    ],
)
def test_a_refusal_names_the_field(tensors, parameters, fields):
    told = refusal(tensors, parameters)
    assert [field for field in fields if field not in told] == []


def test_a_sample_beyond_float32_is_left_to_the_audio_to_refuse():
    (clip,) = read_tensors([Tensor("audio", "FP32", (1,), [1e300], None)], {})
    assert np.isinf(clip.data.samples[0])


def test_more_samples_than_fit_into_json_are_refused():
    text = b'{"data": [' + b"1," * (1 << 23) + b"1]}"
    values = parse_json(text)["data"]
    assert "as bytes" in refusal([Tensor("audio", "FP32", ((1 << 23) + 1,), values, None)], {})


WORDS = st.sampled_from(["audio", "language", "hotwords", "sample_rate", "AA==", "vi"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
RAW = st.binary(max_size=20) | st.lists(st.binary(max_size=4), max_size=3).map(lambda e: raw(*e))
VALUES = st.lists(st.sampled_from(["AA==", "vi", b"AA==", 0, 0.5]) | JSON, max_size=4)
PARAMETERS = st.dictionaries(WORDS, JSON | st.integers(8000, 48_000), max_size=2)
TENSORS = st.builds(
    lambda name, datatype, shape, values, raw, parameters: Tensor(
        name, datatype, tuple(shape), values, raw, parameters
    ),
    st.sampled_from(["audio", "audio", "language", "hotwords"]) | st.text(max_size=3),
    st.sampled_from(["BYTES", "FP32", "INT16", "UINT8"]) | st.text(max_size=3),
    st.lists(st.integers(0, 8) | st.integers(0, 10**30), max_size=3),
    st.none() | VALUES,
    st.none() | RAW,
    PARAMETERS,
)


@settings(max_examples=200)
@given(tensors=st.lists(TENSORS, max_size=3), parameters=PARAMETERS)
def test_any_tensors_are_read_or_refused(tensors, parameters):
    clips = reads_or_refuses(read_tensors, tensors, parameters)
    if clips is not None:
        assert 1 <= len(clips) <= MAX_CLIPS
        assert all(isinstance(c.data, bytes | memoryview | Pcm) and isinstance(c.language, str | None) for c in clips)


def test_every_output_tensor_has_one_element_a_clip():
    words = '[{"text":"xin","start_seconds":0.1,"end_seconds":0.4,"confidence":0.9},'
    words += '{"text":"chào","start_seconds":0.5,"end_seconds":1.0,"confidence":0.8}]'
    assert outputs([HELLO, SILENCE], None) == [
        OutputTensor("text", "BYTES", ["xin chào", ""]),
        OutputTensor("language", "BYTES", ["vi", ""]),
        OutputTensor("duration_seconds", "FP64", [1.25, 2.0]),
        OutputTensor("confidence", "FP64", [0.85, 0.0]),
        OutputTensor("words", "BYTES", [words, "[]"]),
    ]


def test_words_are_json_that_reads_back():
    ((words,),) = (tensor.values for tensor in outputs([HELLO], ["words"]))
    assert tuple(Word(**word) for word in json.loads(words)) == HELLO.words


def test_outputs_are_those_requested_in_the_order_of_the_request():
    assert [t.name for t in outputs([HELLO], ["words", "text"])] == ["words", "text"]
    with pytest.raises(BadRequest, match=r"xxx.*confidence"):
        outputs([HELLO], ["text", LONG])


def test_the_metadata_shows_the_tensors_that_are_read_and_written():
    assert [i["name"] for i in INPUTS] == ["audio", "language", "hotwords"]
    assert [(o["name"], o["datatype"]) for o in OUTPUTS] == [(t.name, t.datatype) for t in outputs([HELLO], None)]
