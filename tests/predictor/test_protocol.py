"""predictor.protocol: what any client may send is read, or refused in a short sentence that names the field."""

import base64
import json
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from predictor import protocol
from predictor.errors import BadRequest
from predictor.protocol import INPUTS, MAX_CLIPS, OUTPUTS, Clip, OutputTensor, Tensor
from predictor.transcript import Transcript, Word

HELLO = Transcript("xin chào", "vi", 1.25, (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8)))
SILENCE = Transcript("", None, 2.0, ())


def _base64(data):
    return base64.b64encode(data).decode()


def _audio(*files, shape=None):
    """An `audio` tensor as JSON carries it."""
    return Tensor("audio", "BYTES", (len(files),) if shape is None else shape, [_base64(f) for f in files], None)


def _languages(*codes):
    return Tensor("language", "BYTES", (len(codes),), list(codes), None)


def _raw(*elements):
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def _binary(inputs, tail=b"", **head):
    """A body of the V2 binary extension and its header."""
    text = json.dumps({"inputs": inputs, **head}).encode()
    return text + tail, str(len(text))


def _refusal(read, *arguments):
    with pytest.raises(BadRequest) as caught:
        read(*arguments)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def _reads_or_refuses(read):
    try:
        return read()
    except BadRequest as error:
        told = str(error)
    assert len(told) < 300
    return None


FILES = st.lists(st.tuples(st.binary(max_size=20), st.none() | st.text(min_size=1, max_size=5)), min_size=1, max_size=5)


@given(FILES)
def test_v1_clips_are_read_as_they_were_sent(files):
    plain = {"instances": [{"audio": _base64(data), "language": code} for data, code in files]}
    served = {"instances": [{"audio": {"b64": _base64(data)}, "language": code} for data, code in files]}
    assert protocol.read_v1(plain) == protocol.read_v1(served) == [Clip(*file) for file in files]


@pytest.mark.parametrize("instance", ["AAE=", {"b64": "AAE="}, {"audio": "AAE="}, {"audio": {"b64": "AAE="}}])
def test_v1_recordings_may_be_written_in_four_ways(instance):
    assert protocol.read_v1({"instances": [instance]}) == [Clip(b"\0\1", None)]


@given(FILES)
def test_v2_json_clips_are_read_as_they_were_sent(files):
    tensors = [_audio(*(data for data, _ in files)), _languages(*(code for _, code in files))]
    assert protocol.read_v2(tensors, None) == [Clip(*file) for file in files]


@given(FILES)
def test_v2_binary_clips_are_read_as_they_were_sent(files):
    audio = _raw(*(data for data, _ in files))
    codes = _raw(*((code or "").encode() for _, code in files))
    tensor = {"datatype": "BYTES", "shape": [len(files)]}
    body, length = _binary(
        [
            {"name": "audio", **tensor, "parameters": {"binary_data_size": len(audio)}},
            {"name": "language", **tensor, "parameters": {"binary_data_size": len(codes)}},
        ],
        audio + codes,
        id="r1",
    )
    head, tensors = protocol.read_v2_body(body, length)
    assert head["id"] == "r1"
    assert protocol.read_v2(tensors, None) == [Clip(*file) for file in files]


def test_a_binary_tensor_may_stand_beside_one_in_json():
    audio = _raw(b"\xff\xfe")
    body, length = _binary(
        [
            {"name": "language", "datatype": "BYTES", "shape": [1], "data": ["hi"]},
            {"name": "audio", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(audio)}},
        ],
        audio,
    )
    assert protocol.read_v2(protocol.read_v2_body(body, length)[1], None) == [Clip(b"\xff\xfe", "hi")]


@pytest.mark.parametrize(("shape", "nested"), [((2, 1), [["AA=="], ["AQ=="]]), ((1, 2), [["AA==", "AQ=="]])])
def test_nested_elements_are_read_in_row_major_order(shape, nested):
    clips = protocol.read_v2([Tensor("audio", "BYTES", shape, nested, None)], None)
    assert [clip.data for clip in clips] == [b"\0", b"\1"]


@pytest.mark.parametrize(
    ("tensor", "parameters", "codes"),
    [
        (None, None, [None, None, None]),
        (None, {}, [None, None, None]),
        (None, {"language": "vi"}, ["vi", "vi", "vi"]),
        (None, {"language": ""}, [None, None, None]),
        (_languages("hi"), None, ["hi", "hi", "hi"]),
        (_languages("hi"), {"language": "vi"}, ["hi", "hi", "hi"]),
        (_languages("hi", "", "vi"), None, ["hi", None, "vi"]),
        (Tensor("language", "BYTES", (1,), None, _raw(b"vi")), None, ["vi", "vi", "vi"]),
        (Tensor("language", "BYTES", (1,), None, _raw(b"\xff")), None, ["\N{REPLACEMENT CHARACTER}"] * 3),
    ],
)
def test_one_language_holds_for_every_clip_and_several_for_one_each(tensor, parameters, codes):
    tensors = [_audio(b"1", b"2", b"3"), *([tensor] if tensor else [])]
    assert [clip.language for clip in protocol.read_v2(tensors, parameters)] == codes


def _v2(*files):
    return protocol.read_v2([_audio(*files)], None)


def _v2_raw(*files):
    return protocol.read_v2([Tensor("audio", "BYTES", (len(files),), None, _raw(*files))], None)


def _v1(*files):
    return protocol.read_v1({"instances": [_base64(f) for f in files]})


@pytest.mark.parametrize("read", [_v1, _v2, _v2_raw])
def test_a_request_holds_one_to_64_clips(read):
    assert MAX_CLIPS == 64
    assert len(read(*[b"x"] * 64)) == 64
    assert "64" in _refusal(read, *[b"x"] * 65)
    assert "64" in _refusal(read)


LONG = "x" * 10_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "instances"),
        ([], "instances"),
        ({}, "instances"),
        ({"instances": "AAAA"}, "instances"),
        ({"instances": ["AA==", 3]}, "instances[1]"),
        ({"instances": ["AA==", "A"]}, "instances[1]"),
        ({"instances": ["*" + LONG]}, "instances[0]"),
        ({"instances": ["ưu"]}, "instances[0]"),
        ({"instances": [{}]}, "instances[0]"),
        ({"instances": [{"audio": None}]}, "instances[0]"),
        ({"instances": [{"audio": {"b64": ["AA=="]}}]}, "instances[0]"),
        ({"instances": [[["AA=="]]]}, "instances[0]"),
        ({"instances": [{"audio": "AA==", "language": 3}]}, "language"),
        ({"instances": [{"audio": "AA==", "language": ["vi"]}]}, "language"),
    ],
)
def test_a_v1_refusal_names_the_field(body, field):
    assert field in _refusal(protocol.read_v1, body)


BYTES = {"datatype": "BYTES", "shape": (1,), "values": None, "raw": None}


@pytest.mark.parametrize(
    ("tensors", "parameters", "fields"),
    [
        ([], None, ["audio", "missing"]),
        ([_languages("vi")], None, ["audio", "missing"]),
        ([Tensor(LONG, **BYTES)], None, ["xxx", "audio", "language"]),
        ([Tensor("audio", "FP32", (1,), [0.5], None)], None, ["audio", "FP32", "BYTES"]),
        ([Tensor("audio", LONG, (1,), [0.5], None)], None, ["audio", "BYTES"]),
        ([Tensor("audio", "BYTES", (2,), ["AA=="], None)], None, ["audio", "[2]", "1 elements"]),
        ([Tensor("audio", "BYTES", (0,), [], None)], None, ["audio", "[0]"]),
        ([Tensor("audio", "BYTES", (10**4_000,) * 8, ["AA=="], None)], None, ["audio", "shape"]),
        ([Tensor("audio", "BYTES", (1,) * 10_000, ["AA=="], None)], None, ["audio", "shape"]),
        ([Tensor("audio", "BYTES", (1,), [7], None)], None, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), [{"b64": "AA=="}], None)], None, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), [LONG + "*"], None)], None, ["audio", "base64"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\1\0\0")], None, ["audio", "length"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\2\0\0\0x")], None, ["audio", "2 bytes"]),
        ([Tensor("audio", "BYTES", (1,), None, b"\xff\xff\xff\xff")], None, ["audio", "4294967295 bytes"]),
        ([Tensor("audio", "BYTES", (2,), None, _raw(b"x"))], None, ["audio", "[2]", "1 elements"]),
        ([_audio(b"1", b"2", b"3"), _languages("vi", "hi")], None, ["language", "2", "3"]),
        ([_audio(b"1"), _languages(5)], None, ["language"]),
        ([_audio(b"1"), Tensor("language", "INT8", (1,), [1], None)], None, ["language", "INT8"]),
        ([_audio(b"1")], {"language": ["vi"]}, ["language"]),
        ([_audio(b"1")], {"language": 0}, ["language"]),
    ],
)
def test_a_v2_refusal_names_the_field(tensors, parameters, fields):
    told = _refusal(protocol.read_v2, tensors, parameters)
    assert [field for field in fields if field not in told] == []


TENSOR = {"name": "audio", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (None, "inputs"),
        ({}, "inputs"),
        ([None], "inputs"),
        ([{}], "name"),
        ([TENSOR | {"name": 3}], "name"),
        ([TENSOR | {"datatype": None}], "datatype"),
        ([TENSOR | {"shape": 1}], "shape"),
        ([TENSOR | {"shape": [-1]}], "shape"),
        ([TENSOR | {"shape": [1.0]}], "shape"),
        ([TENSOR | {"shape": [True]}], "shape"),
        ([TENSOR | {"shape": ["1"]}], "shape"),
        ([TENSOR], "audio"),
        ([TENSOR | {"data": "AA=="}], "audio"),
        ([TENSOR | {"name": LONG}], "xxx"),
        ([TENSOR | {"parameters": []}], "audio"),
        ([TENSOR | {"parameters": {"binary_data_size": 5}}], "binary_data_size"),
        ([TENSOR | {"parameters": {"binary_data_size": -1}}], "binary_data_size"),
        ([TENSOR | {"parameters": {"binary_data_size": "4"}}], "binary_data_size"),
        ([TENSOR | {"parameters": {"binary_data_size": True}}], "binary_data_size"),
        ([TENSOR | {"parameters": {"binary_data_size": 3}}] * 2, "binary_data_size"),
    ],
)
def test_a_v2_binary_refusal_names_the_field(inputs, field):
    assert field in _refusal(protocol.read_v2_body, *_binary(inputs, b"tail"))


@pytest.mark.parametrize("length", ["", "-1", "1.5", "x", "²", "15 ", "16", "9" * 30, "9" * 5_000])
def test_a_header_length_that_is_no_number_within_the_body_is_refused(length):
    assert "Inference-Header-Content-Length" in _refusal(protocol.read_v2_body, b'{"inputs": []} ', length)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000], ids=lambda b: f"{b[:5]!r}"
)
def test_a_body_that_is_not_json_is_refused_however_deep_it_is(body):
    assert "JSON" in _refusal(protocol.parse_json, body)


def test_elements_may_be_nested_deeper_than_the_interpreter_recurses():
    nested = "AA=="
    for _ in range(100_000):
        nested = [nested]
    assert protocol.read_v2([Tensor("audio", "BYTES", (1,), nested, None)], None) == [Clip(b"\0", None)]


WORDS = st.sampled_from(
    ["instances", "audio", "language", "b64", "inputs", "name", "datatype", "BYTES", "shape", "data", "AA==", "vi"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
INSTANCES = st.fixed_dictionaries({"instances": st.lists(JSON, max_size=3)})


@given(body=JSON | INSTANCES)
def test_any_json_as_a_v1_body_is_read_or_refused(body):
    clips = _reads_or_refuses(lambda: protocol.read_v1(body))
    assert clips is None or all(isinstance(clip.data, bytes) for clip in clips)


RAW = st.binary(max_size=20) | st.lists(st.binary(max_size=4), max_size=3).map(lambda e: _raw(*e))
VALUES = st.lists(st.sampled_from(["AA==", "vi", b"AA=="]) | JSON, max_size=4)
TENSORS = st.builds(
    lambda name, datatype, shape, values, raw: Tensor(name, datatype, tuple(shape), values, raw),
    st.sampled_from(["audio", "language"]) | st.text(max_size=3),
    st.just("BYTES") | st.text(max_size=3),
    st.lists(st.integers(0, 4) | st.integers(0, 10**30), max_size=3),
    st.none() | VALUES,
    st.none() | RAW,
)


@settings(max_examples=300)
@given(tensors=st.lists(TENSORS, max_size=3), parameters=st.none() | st.dictionaries(WORDS, JSON, max_size=2))
def test_any_tensors_are_read_or_refused(tensors, parameters):
    clips = _reads_or_refuses(lambda: protocol.read_v2(tensors, parameters))
    if clips is not None:
        assert 1 <= len(clips) <= MAX_CLIPS
        assert all(isinstance(c.data, bytes) and isinstance(c.language, str | None) for c in clips)


PARAMETERS = JSON | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 30) | JSON})
ITEMS = JSON | st.fixed_dictionaries(
    {"name": WORDS | JSON, "datatype": WORDS | JSON, "shape": st.lists(st.integers(-1, 3) | JSON, max_size=2) | JSON},
    optional={"data": JSON, "parameters": PARAMETERS},
)
HEADS = JSON | st.fixed_dictionaries({"inputs": st.lists(ITEMS, max_size=3) | JSON}, optional={"id": JSON})


@settings(max_examples=300)
@given(head=st.binary(max_size=30) | HEADS.map(json.dumps).map(str.encode), tail=RAW, data=st.data())
@example(head=b"{}", tail=b"", data=None)
def test_any_bytes_with_any_header_length_are_read_or_refused(head, tail, data):
    right = str(len(head))
    length = data.draw(st.just(right) | st.integers(-1, 99).map(str) | st.text(max_size=5)) if data else right
    parsed = _reads_or_refuses(lambda: protocol.read_v2_body(head + tail, length))
    if parsed is not None:
        assert isinstance(parsed[0], dict)
        _reads_or_refuses(lambda: protocol.read_v2(parsed[1], None))


def test_every_output_tensor_has_one_element_a_clip():
    assert protocol.write_v2([HELLO, SILENCE], None) == [
        OutputTensor("text", "BYTES", ["xin chào", ""]),
        OutputTensor("language", "BYTES", ["vi", ""]),
        OutputTensor("duration_seconds", "FP64", [1.25, 2.0]),
        OutputTensor("words", "BYTES", [protocol.write_v2([HELLO], ["words"])[0].values[0], "[]"]),
    ]


def test_words_are_json_that_reads_back():
    ((words,),) = (tensor.values for tensor in protocol.write_v2([HELLO], ["words"]))
    assert tuple(Word(**word) for word in json.loads(words)) == HELLO.words
    assert "chào" in words


def test_outputs_are_those_requested_in_the_order_of_the_request():
    assert [t.name for t in protocol.write_v2([HELLO], ["words", "text"])] == ["words", "text"]
    assert "xxx" in _refusal(protocol.write_v2, [HELLO], ["text", LONG])


def test_the_metadata_shows_the_tensors_that_are_read_and_written():
    assert [i["name"] for i in INPUTS] == ["audio", "language"]
    assert [(o["name"], o["datatype"]) for o in OUTPUTS] == [
        (t.name, t.datatype) for t in protocol.write_v2([HELLO], None)
    ]


def test_v1_predictions_are_transcripts_with_their_own_field_names():
    written = json.loads(json.dumps(protocol.write_v1([HELLO, SILENCE])))
    assert set(written) == {"predictions"}
    assert [
        Transcript(**(p | {"words": tuple(Word(**word) for word in p["words"])})) for p in written["predictions"]
    ] == [HELLO, SILENCE]


LONG_AUDIO = "QUJD" * 20_000


def long_body(**changes) -> bytes:
    tensor = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [LONG_AUDIO]}
    return json.dumps({"inputs": [tensor], "id": 'a "quoted\\" id', **changes}).encode()


def test_long_audio_in_json_is_read_without_the_parser_and_exactly():
    body = long_body(parameters={"language": "vi"})
    head, tensors = protocol.read_v2_body(body, str(len(body)))
    assert head["id"] == 'a "quoted\\" id'
    (clip,) = protocol.read_v2(tensors, head["parameters"])
    assert clip.data == b"ABC" * 20_000
    assert clip.language == "vi"


@pytest.mark.parametrize(
    "body",
    [
        long_body()[:-3],
        long_body().replace(b"QUJD", b"QUJ!", 1),
        long_body().replace(b"QUJD", b'\\"JD', 1),
        long_body(inputs=[{"name": LONG_AUDIO, "datatype": "BYTES", "shape": [1], "data": ["QUJD"]}]),
        long_body(inputs=[{"name": "audio", "datatype": LONG_AUDIO, "shape": [1], "data": ["QUJD"]}]),
        b"[" * 600 + b'"' + LONG_AUDIO.encode() + b'"' + b"]" * 600,
        b'{"inputs":' + b"[" * 100_000,
        b'"' * 70_001,
        b"\\" * 70_000,
    ],
    ids=range(9),
)
def test_a_long_body_that_is_wrong_is_a_bad_request(body):
    with pytest.raises(BadRequest):
        protocol.read_v2(protocol.read_v2_body(body, str(len(body)))[1], None)
