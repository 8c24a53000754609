"""predictor.protocol.v1: instances, or the file itself; refusals name the field."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import BadRequest
from predictor.protocol import MAX_CLIPS, Clip, v1
from predictor.transcript import Transcript, Word

HELLO = Transcript("xin chào", "vi", 1.25, (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8)))
SILENCE = Transcript("", None, 2.0, ())
LONG = "x" * 10_000


def encoded(data):
    return base64.b64encode(data).decode()


def read(value, content_type="application/json"):
    return v1.read(json.dumps(value).encode(), content_type)


def reads_or_refuses(read, *arguments):
    try:
        return read(*arguments)
    except BadRequest as error:
        told = str(error)
    assert len(told) < 300
    return None


FILES = st.lists(st.tuples(st.binary(max_size=20), st.none() | st.text(min_size=1, max_size=5)), min_size=1, max_size=5)


@given(FILES)
def test_clips_are_read_as_they_were_sent(files):
    plain = {"instances": [{"audio": encoded(data), "language": code} for data, code in files]}
    served = {"instances": [{"audio": {"b64": encoded(data)}, "language": code} for data, code in files]}
    assert read(plain) == read(served) == [Clip(*file) for file in files]


@pytest.mark.parametrize("instance", ["AAE=", {"b64": "AAE="}, {"audio": "AAE="}, {"audio": {"b64": "AAE="}}])
def test_recordings_may_be_written_in_four_ways(instance):
    assert read({"instances": [instance]}) == [Clip(b"\0\1")]


def test_an_instance_may_have_hotwords():
    assert read({"instances": [{"audio": "AAE=", "hotwords": "Huế, Hà Nội"}]})[0].hotwords == ("Huế", "Hà Nội")


def test_a_long_recording_is_read_exactly():
    data = bytes(range(256)) * 2_000
    assert read({"instances": [{"audio": encoded(data), "language": "vi"}, encoded(data)]}) == [
        Clip(data, "vi"),
        Clip(data),
    ]


@pytest.mark.parametrize("content_type", ["audio/wav", "application/octet-stream", "", "application/jsonlines"])
def test_of_any_other_content_type_the_body_is_the_file_and_is_not_copied(content_type):
    body = bytearray(b'{"instances": []}')
    (clip,) = v1.read(body, content_type)
    assert clip.data is body


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"],
)
def test_json_is_told_by_its_content_type(content_type):
    assert read({"instances": ["AAE="]}, content_type) == [Clip(b"\0\1")]


def test_a_request_holds_one_to_64_clips():
    assert len(read({"instances": ["AA=="] * MAX_CLIPS})) == 64
    for count in (0, 65):
        with pytest.raises(BadRequest, match="1 to 64"):
            read({"instances": ["AA=="] * count})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "instances"),
        ([], "instances"),
        ({}, "instances"),
        ({"instances": "AAAA"}, "instances"),
        ({"instances": [1.5] * 10_000}, "instances"),
        ({"instances": ["AA==", 3]}, "instances[1]"),
        ({"instances": ["AA==", "A"]}, "instances[1]"),
        ({"instances": ["*" + LONG]}, "instances[0]"),
        ({"instances": ["ưu"]}, "instances[0]"),
        ({"instances": [{}]}, "instances[0]"),
        ({"instances": [{"audio": None}]}, "instances[0]"),
        ({"instances": [{"audio": {"b64": ["AA=="]}}]}, "instances[0]"),
        ({"instances": [[["AA=="]]]}, "instances[0]"),
        ({"instances": [[0.5] * 10_000]}, "instances[0]"),
        ({"instances": [{"audio": "AA==", "language": 3}]}, "language"),
        ({"instances": [{"audio": "AA==", "language": ["vi"]}]}, "language"),
        ({"instances": [{"audio": "AA==", "hotwords": 3}]}, "hotwords"),
    ],
)
def test_a_refusal_names_the_field(body, field):
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 200


WORDS = st.sampled_from(["instances", "audio", "language", "hotwords", "b64", "AA==", "vi"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
INSTANCES = st.fixed_dictionaries({"instances": st.lists(JSON, max_size=3)})


@given(body=st.binary(max_size=50) | (JSON | INSTANCES).map(json.dumps).map(str.encode))
def test_any_body_is_read_or_refused(body):
    clips = reads_or_refuses(v1.read, body, "application/json")
    assert clips is None or all(isinstance(clip.data, bytes) for clip in clips)


def test_predictions_are_transcripts_with_their_own_field_names():
    written = json.loads(v1.write([HELLO, SILENCE]))
    assert set(written) == {"predictions"}
    assert [
        Transcript(**(p | {"words": tuple(Word(**word) for word in p["words"])})) for p in written["predictions"]
    ] == [HELLO, SILENCE]
