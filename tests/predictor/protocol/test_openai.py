"""predictor.protocol.openai: what OpenAI's client encodes is read, and what is written its client reads."""

import json
import math

import httpx
import openai as openai_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.audio import Transcription, TranscriptionVerbose
from openai.types.audio.transcription_stream_event import TranscriptionStreamEvent
from pydantic import TypeAdapter

from predictor import transcript
from predictor.errors import BadRequest, PredictorError
from predictor.protocol import Clip, multipart, openai
from predictor.protocol.openai import FORMATS, LANGUAGE_NAMES, Asked
from predictor.transcript import Transcript, Word

WORDS = (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8), Word("Huế", 2.5, 3.0, 1.0))
HELLO = Transcript("xin chào Huế", "vi", 3.251, WORDS)
SILENCE = Transcript("", None, 2.0, ())


def form(file=b"RIFF", **fields):
    files = {"file": ("a.wav", file, "audio/wav")}
    request = httpx.Request("POST", "http://localhost", data=fields, files=files)
    return multipart.read(request.read(), request.headers["content-type"])


def asked(**fields):
    return openai.read(form(**fields))


def client(answer):
    """OpenAI's own client, on the HTTP library that it brings along, with `answer` in the place of a server."""
    library = openai_client._base_client.httpx2
    transport = library.MockTransport(lambda request: library.Response(200, **answer(request)))
    return openai_client.OpenAI(
        api_key="k", base_url="http://localhost/v1", http_client=library.Client(transport=transport)
    ).audio.transcriptions


def by_openais_client(**arguments):
    """What is asked for by the request that OpenAI's client sends."""
    requests = []

    def answer(request):
        requests.append(openai.read(multipart.read(request.read(), request.headers["content-type"])))
        return {"json": {"text": ""}}

    client(answer).create(file=("a.wav", b"RIFF"), **arguments)
    return requests[0]


def refusal(**fields):
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def test_a_file_alone_is_enough():
    assert asked() == Asked(Clip(b"RIFF"), "", "json", ("segment",), stream=False, logprobs=False)


def test_openais_client_is_understood():
    assert by_openais_client(
        model="whisper-1",
        language="vi",
        prompt="Huế, Hà Nội",
        response_format="verbose_json",
        temperature=0.2,
        timestamp_granularities=["word", "segment"],
    ) == Asked(
        Clip(b"RIFF", "vi", ("Huế", "Hà Nội")),
        "whisper-1",
        "verbose_json",
        ("segment", "word"),
        stream=False,
        logprobs=False,
    )
    assert by_openais_client(
        model="m",
        stream=True,
        include=["logprobs"],
        keywords=["Huế", "Đà Lạt"],
        chunking_strategy={"type": "server_vad", "threshold": 0.5},
        extra_body={"hotwords": "Phở"},
    ) == Asked(Clip(b"RIFF", None, ("Huế", "Đà Lạt", "Phở")), "m", "json", ("segment",), stream=True, logprobs=True)


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
def test_lists_are_named_with_brackets_or_without(name):
    assert asked(**{name: ["word"], "response_format": "verbose_json"}).granularities == ("word",)


@pytest.mark.parametrize(
    ("said", "stream"), [("true", True), ("True", True), ("1", True), ("false", False), ("0", False), ("", False)]
)
def test_stream_is_a_boolean(said, stream):
    assert asked(stream=said).stream is stream


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": "diarized_json"}, "response_format 'diarized_json'"),
        ({"response_format": "x" * 10_000}, "verbose_json"),
        ({"response_format": ["json", "text"]}, "response_format"),
        ({"stream": "yes"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream"),
        ({"timestamp_granularities[]": "char", "response_format": "verbose_json"}, "timestamp_granularities"),
        ({"timestamp_granularities[]": "word"}, "verbose_json"),
        ({"include[]": "tokens"}, "include"),
        ({"include[]": "logprobs", "response_format": "text"}, "logprobs"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "9" * 5_000}, "temperature"),
        ({"model": ["a", "b"]}, "model"),
        ({"language": ["a", "b"]}, "language"),
    ],
)
def test_a_refusal_names_the_field(fields, named):
    assert named in refusal(**fields)


def test_a_request_without_its_file_is_refused():
    with pytest.raises(BadRequest, match="'file'"):
        openai.read(multipart.Form({"file": ["x"]}, {}))
    with pytest.raises(BadRequest, match="'file'"):
        openai.read(multipart.Form({}, {}))


NAMES = ["file", "model", "language", "prompt", "response_format", "temperature", "stream", "include[]", "include"]
NAMES += ["timestamp_granularities[]", "keywords[]", "hotwords", "chunking_strategy"]
TEXTS = st.sampled_from(
    ["json", "text", "srt", "vtt", "verbose_json", "true", "word", "segment", "logprobs", "0.5", "vi", ""]
)


@given(
    fields=st.dictionaries(st.sampled_from(NAMES), st.lists(TEXTS | st.text(), max_size=2)),
    file=st.binary(max_size=4) | st.none(),
)
def test_any_form_is_read_or_refused(fields, file):
    files = {} if file is None else {"file": multipart.File("", "", memoryview(file))}
    try:
        read = openai.read(multipart.Form(fields, files))
    except PredictorError as error:
        told = str(error)
    else:
        told = ""
        assert read.response_format in FORMATS
    assert len(told) < 300


def written(transcript_=HELLO, **fields):
    return openai.write(asked(**fields), transcript_)


def test_json_is_the_text_and_the_usage():
    body, media_type = written()
    assert media_type == "application/json"
    assert json.loads(body) == {"text": "xin chào Huế", "usage": {"type": "duration", "seconds": 4}}
    assert Transcription.model_validate_json(body).usage.type == "duration"


def test_log_probabilities_are_those_of_words():
    value = Transcription.model_validate_json(written(**{"include[]": "logprobs"})[0])
    assert "".join(item.token for item in value.logprobs).strip() == value.text
    assert [bytes(map(int, item.bytes)).decode() for item in value.logprobs] == [" xin", " chào", " Huế"]
    assert [item.logprob for item in value.logprobs] == [pytest.approx(math.log(w.confidence), abs=1e-3) for w in WORDS]


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        ("text", "xin chào Huế\n"),
        ("srt", transcript.to_srt(HELLO)),
        ("vtt", transcript.to_vtt(HELLO)),
    ],
)
def test_text_and_subtitles_are_plain_text(response_format, text):
    body, media_type = written(response_format=response_format)
    assert body.decode() == text
    assert media_type == "text/plain; charset=utf-8"


def verbose(transcript_=HELLO, *granularities):
    fields = {"timestamp_granularities[]": list(granularities)} if granularities else {}
    body, media_type = written(transcript_, response_format="verbose_json", **fields)
    assert media_type == "application/json"
    TranscriptionVerbose.model_validate_json(body, strict=True)
    return json.loads(body)


def test_verbose_json_has_segments_as_whisper_has_them():
    value = verbose()
    segments = value.pop("segments")
    assert value == {
        "task": "transcribe",
        "language": "vietnamese",
        "duration": 3.251,
        "text": "xin chào Huế",
        "usage": {"type": "duration", "seconds": 4},
    }
    assert segments[0] == {
        "id": 0,
        "seek": 10,
        "start": 0.1,
        "end": 1.0,
        "text": " xin chào",
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": pytest.approx((math.log(0.9) + math.log(0.8)) / 2, abs=1e-3),
        "compression_ratio": pytest.approx(10 / 18, abs=0.01),
        "no_speech_prob": 0.0,
    }
    assert [(s["id"], s["text"], s["avg_logprob"]) for s in segments[1:]] == [(1, " Huế", 0.0)]
    assert "".join(s["text"] for s in segments).strip() == value["text"]


def test_verbose_json_has_words_where_they_are_asked_for():
    words = [{"word": w.text, "start": w.start_seconds, "end": w.end_seconds} for w in WORDS]
    assert verbose(HELLO, "word")["words"] == words
    assert "segments" not in verbose(HELLO, "word")
    assert "words" not in verbose(HELLO, "segment")
    both = verbose(HELLO, "word", "segment")
    assert both["words"] == words
    assert len(both["segments"]) == 2


def test_silence_has_no_segments_no_words_and_an_empty_language():
    value = verbose(SILENCE, "word", "segment")
    assert (value["language"], value["text"], value["segments"], value["words"]) == ("", "", [], [])


def test_a_language_without_a_name_is_its_code():
    assert verbose(Transcript("x", "xx", 1.0, ()))["language"] == "xx"
    assert verbose(Transcript("x", "hi", 1.0, ()))["language"] == "hindi"
    assert len(set(LANGUAGE_NAMES.values())) == len(LANGUAGE_NAMES)


def data_of(event):
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return event[6:]


def test_events_are_those_of_openais_client():
    adapter = TypeAdapter(TranscriptionStreamEvent)
    delta = adapter.validate_json(data_of(openai.event(" xin\n")))
    assert (delta.type, delta.delta) == ("transcript.text.delta", " xin\n")
    done = json.loads(data_of(openai.done(asked(stream="true"), HELLO)))
    assert done == {
        "type": "transcript.text.done",
        "text": "xin chào Huế",
        "usage": {"type": "duration", "seconds": 4},
    }
    done = json.loads(data_of(openai.done(asked(stream="true", **{"include[]": "logprobs"}), HELLO)))
    assert [item["token"] for item in done["logprobs"]] == [" xin", " chào", " Huế"]


def test_openais_client_reads_a_stream_without_a_mark_at_its_end():
    events = openai.event("xin") + openai.event(" chào Huế") + openai.done(asked(stream="true"), HELLO)
    stream = client(lambda _: {"content": events, "headers": {"content-type": "text/event-stream"}})
    *deltas, last = stream.create(model="m", file=("a.wav", b"x"), stream=True)
    assert "".join(event.delta for event in deltas) == last.text == HELLO.text


def test_openais_client_raises_the_error_that_ends_a_stream():
    events = openai.event("xin") + b"data: " + openai.error("the engine failed", 500) + b"\n\n"
    stream = client(lambda _: {"content": events, "headers": {"content-type": "text/event-stream"}})
    with pytest.raises(openai_client.APIError, match="the engine failed"):
        list(stream.create(model="m", file=("a.wav", b"x"), stream=True))


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (404, "invalid_request_error", "model_not_found"),
        (413, "invalid_request_error", None),
        (429, "requests", "rate_limit_exceeded"),
        (500, "server_error", None),
        (503, "server_error", None),
    ],
)
def test_errors_have_openais_types(status, kind, code):
    assert json.loads(openai.error("what was wrong", status)) == {
        "error": {"message": "what was wrong", "type": kind, "param": None, "code": code}
    }
