"""predictor.protocol.v2: what the clients' own encoders write is read, and what is written they read."""

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from predictor.errors import BadRequest
from predictor.protocol import Clip, v2
from predictor.protocol.v2 import Asked, Output
from predictor.transcript import Transcript, Word

HELLO = Transcript("xin chào", "vi", 1.25, (Word("xin", 0.1, 0.4, 0.9), Word("chào", 0.5, 1.0, 0.8)))
SILENCE = Transcript("", None, 2.0, ())
LONG = "x" * 10_000
ALL = ("text", "language", "duration_seconds", "confidence", "words")


def raw(*elements):
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def binary(inputs, tail=b"", **head):
    """A body of the binary tensor extension and its header."""
    text = json.dumps({"inputs": inputs, **head}).encode()
    return text + tail, str(len(text))


def refusal(read, *arguments):
    with pytest.raises(BadRequest) as caught:
        read(*arguments)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def encoded(data):
    return base64.b64encode(data).decode()


def read(value):
    return v2.read(json.dumps(value).encode(), None)


def write(asked, transcripts):
    return v2.write(asked, transcripts, model_name="m", model_version="1", parameters={"bundle_digest": "d"}, id="r1")


def reads_or_refuses(read, *arguments):
    try:
        return read(*arguments)
    except BadRequest as error:
        told = str(error)
    assert len(told) < 300
    return None


FILE = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": ["AA=="]}
FILES = st.lists(st.tuples(st.binary(max_size=20), st.text(min_size=1, max_size=5)), min_size=1, max_size=5)


@given(FILES)
def test_clips_are_read_as_they_were_sent(files):
    shape = {"datatype": "BYTES", "shape": [len(files)]}
    codes = {"name": "language", **shape, "data": [code for _, code in files]}
    assert read(
        {"id": "r1", "inputs": [{"name": "audio", **shape, "data": [encoded(d) for d, _ in files]}, codes]}
    ) == (Asked("r1", [Clip(*file) for file in files], None))
    audio = raw(*(data for data, _ in files))
    inputs = [codes, {"name": "audio", **shape, "parameters": {"binary_data_size": len(audio)}}]
    assert v2.read(*binary(inputs, audio)) == Asked(None, [Clip(*file) for file in files], None)


def numpy_text(*values):
    return np.array(values, dtype=np.object_)


def triton(inputs, outputs=None, **parameters):
    """A body as Triton's client writes it, and the header that it sends."""
    body, length = _get_inference_request(inputs, "r1", outputs, 0, False, False, 0, None, parameters)
    return body, None if length is None else str(length)


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritons_client_is_understood(is_binary):
    files = [b"RIFF\xff\0" * 20_000, b"fLaC"]
    sent = files if is_binary else [encoded(file) for file in files]
    audio = InferInput("audio", [2], "BYTES").set_data_from_numpy(numpy_text(*sent), binary_data=is_binary)
    codes = InferInput("language", [1], "BYTES").set_data_from_numpy(numpy_text("vi"), binary_data=is_binary)
    outputs = [
        InferRequestedOutput("text", binary_data=is_binary),
        InferRequestedOutput("words", binary_data=not is_binary),
    ]
    asked = v2.read(*triton([audio, codes], outputs, hotwords="Huế, Hà Nội"))
    assert asked == Asked(
        "r1",
        [Clip(file, "vi", ("Huế", "Hà Nội")) for file in files],
        (Output("text", is_binary), Output("words", not is_binary)),
    )


@pytest.mark.parametrize(("kind", "datatype"), [(np.float32, "FP32"), (np.int16, "INT16"), (np.uint8, "UINT8")])
@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("shape", [[48_000], [1, 48_000], [3, 16_000]])
def test_tritons_client_may_send_samples(kind, datatype, is_binary, shape):
    array = (np.arange(48_000) % 100).astype(kind).reshape(shape)
    audio = InferInput("audio", shape, datatype).set_data_from_numpy(array, binary_data=is_binary)
    clips = v2.read(*triton([audio], sample_rate=8000)).clips
    assert np.array_equal(np.concatenate([clip.data.samples for clip in clips]), array.ravel())
    assert [clip.data.rate_hz for clip in clips] == [8000] * len(clips)
    assert len(clips) == (3 if shape[0] == 3 else 1)


def test_without_outputs_tritons_client_asks_for_all_of_them_in_binary():
    audio = InferInput("audio", [1], "BYTES").set_data_from_numpy(numpy_text(b"x"))
    assert v2.read(*triton([audio])).outputs == tuple(Output(name, binary=True) for name in ALL)


def test_kserves_client_is_understood():
    from kserve import InferInput as KServeInput
    from kserve import InferRequest
    from kserve.protocol.infer_type import RequestedOutput

    audio = KServeInput("audio", [1], "BYTES")
    audio.set_data_from_numpy(numpy_text(b"RIFF\xff"), binary_data=True)
    code = KServeInput("language", [1], "BYTES", ["vi"])
    pcm = KServeInput("audio", [4], "FP32", parameters={"sample_rate": 8000})
    pcm.set_data_from_numpy(np.array([0, 0.5, 1, -1], np.float32), binary_data=True)
    requested = [RequestedOutput("text", {"binary_data": True}), RequestedOutput("language")]
    body, length = InferRequest("m", [audio, code], "r1", request_outputs=requested).to_rest()
    assert v2.read(body, str(length)) == Asked(
        "r1", [Clip(b"RIFF\xff", "vi")], (Output("text", binary=True), Output("language", binary=False))
    )
    body, length = InferRequest("m", [pcm], parameters={"language": "hi"}).to_rest()
    (clip,) = v2.read(body, str(length)).clips
    assert (clip.data.samples.tolist(), clip.data.rate_hz, clip.language) == ([0, 0.5, 1, -1], 8000, "hi")
    audio.set_data_from_numpy(numpy_text(encoded(b"RIFF\xff").encode()), binary_data=False)
    body, length = InferRequest("m", [audio]).to_rest()
    assert length is None
    assert read(body).clips == [Clip(b"RIFF\xff")]


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_binary_files_are_views_of_the_body(kind):
    body, length = binary([FILE | {"parameters": {"binary_data_size": 7}, "data": None}], raw(b"abc"))
    body = kind(body)
    (clip,) = v2.read(body, length).clips
    assert clip.data.obj is body
    assert clip.data == b"abc"


def test_long_audio_in_json_is_read_exactly():
    data = bytes(range(256)) * 1_000
    asked = read(
        {"id": 'a "quoted\\" id', "inputs": [FILE | {"data": [encoded(data)]}], "parameters": {"language": "vi"}}
    )
    assert asked == Asked('a "quoted\\" id', [Clip(data, "vi")], None)


@pytest.mark.parametrize(
    ("request_says", "output_says", "is_binary"),
    [
        ({}, {}, False),
        ({}, {"binary_data": True}, True),
        ({"binary_data_output": True}, {}, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
        ({"binary_data_output": False}, {"binary_data": True}, True),
    ],
)
def test_an_outputs_own_word_counts_more_than_the_requests(request_says, output_says, is_binary):
    outputs = [{"name": "text", "parameters": output_says}]
    assert read({"inputs": [FILE], "parameters": request_says, "outputs": outputs}).outputs == (
        Output("text", is_binary),
    )


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (None, "inputs"),
        ({}, "inputs"),
        ([None], "inputs"),
        ([{}], "name"),
        ([FILE | {"name": 3}], "name"),
        ([FILE | {"datatype": None}], "datatype"),
        ([FILE | {"shape": 1}], "shape"),
        ([FILE | {"shape": [-1]}], "shape"),
        ([FILE | {"shape": [1.0]}], "shape"),
        ([FILE | {"shape": [True]}], "shape"),
        ([FILE | {"shape": ["1"]}], "shape"),
        ([FILE | {"shape": [1] * 20_000}], "shape"),
        ([FILE | {"data": None}], "audio"),
        ([FILE | {"data": "AA=="}], "audio"),
        ([FILE | {"name": LONG}], "xxx"),
        ([FILE | {"name": LONG * 3}], "name"),
        ([FILE | {"parameters": []}], "audio"),
        ([FILE | {"parameters": {"binary_data_size": 5}}], "binary_data_size"),
        ([FILE | {"parameters": {"binary_data_size": -1}}], "binary_data_size"),
        ([FILE | {"parameters": {"binary_data_size": "4"}}], "binary_data_size"),
        ([FILE | {"parameters": {"binary_data_size": True}}], "binary_data_size"),
        ([FILE | {"parameters": {"binary_data_size": 3}}] * 2, "binary_data_size"),
        ([FILE | {"data": None, "parameters": {"shared_memory_region": "x"}}], "audio"),
        ([FILE], "4 bytes"),
    ],
)
def test_a_refusal_of_an_input_names_the_field(inputs, field):
    assert field in refusal(v2.read, *binary(inputs, b"tail"))


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ({"id": 3}, "id"),
        ({"parameters": []}, "parameters"),
        ({"outputs": {}}, "outputs"),
        ({"outputs": ["text"]}, "output"),
        ({"outputs": [{"name": 3}]}, "output"),
        ({"outputs": [{"name": LONG}]}, "xxx"),
        ({"outputs": [{"name": "text"}] * 2}, "twice"),
        ({"outputs": [{"name": "text", "parameters": 3}]}, "text"),
        ({"outputs": [{"name": "text", "parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
    ],
)
def test_a_refusal_of_the_rest_names_the_field(head, field):
    assert field in refusal(read, {"inputs": [FILE], **head})


@pytest.mark.parametrize("length", ["", "-1", "1.5", "x", "²", "15 ", "16", "9" * 30, "9" * 5_000])
def test_a_header_length_that_is_no_number_within_the_body_is_refused(length):
    assert "Inference-Header-Content-Length" in refusal(v2.read, b'{"inputs": []} ', length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["audio", "BYTES", "AA==", "text"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "data", "binary_data", "sample_rate", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
PARAMETERS = JSON | st.fixed_dictionaries(
    {"binary_data_size": st.integers(-1, 30) | JSON}, optional={"sample_rate": JSON}
)
ITEMS = JSON | st.fixed_dictionaries(
    {
        "name": st.just("audio") | JSON,
        "datatype": st.sampled_from(["BYTES", "FP32", "INT16", "UINT8"]) | JSON,
        "shape": st.lists(st.integers(-1, 3) | JSON, max_size=2) | JSON,
    },
    optional={"data": JSON, "parameters": PARAMETERS},
)
HEADS = JSON | st.fixed_dictionaries(
    {"inputs": st.lists(ITEMS, max_size=3) | JSON},
    optional={"id": JSON, "parameters": JSON, "outputs": st.lists(ITEMS, max_size=2) | JSON},
)
RAW = st.binary(max_size=20) | st.lists(st.binary(max_size=4), max_size=3).map(lambda e: raw(*e))


@settings(max_examples=200)
@given(head=st.binary(max_size=30) | HEADS.map(json.dumps).map(str.encode), tail=RAW, data=st.data())
def test_any_bytes_with_any_header_length_are_read_or_refused(head, tail, data):
    length = data.draw(st.just(str(len(head))) | st.none() | st.integers(-1, 99).map(str) | st.text(max_size=5))
    asked = reads_or_refuses(v2.read, head + tail, length)
    assert asked is None or 1 <= len(asked.clips) <= 64


@given(st.data())
def test_a_body_that_was_changed_is_read_or_refused(data):
    audio = InferInput("audio", [2], "BYTES").set_data_from_numpy(numpy_text(b"abc", b"defg"))
    codes = InferInput("language", [1], "BYTES").set_data_from_numpy(numpy_text("vi"), binary_data=False)
    body, length = triton([audio, codes], [InferRequestedOutput("text")])
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"9" * 40, b"[", b"]"])
        )
    reads_or_refuses(v2.read, body, length)


def test_an_answer_in_json_names_the_model_and_the_outputs_in_order():
    body, length = write(read({"inputs": [FILE]}), [HELLO, SILENCE])
    assert length is None
    value = json.loads(body)
    outputs = value.pop("outputs")
    assert value == {"id": "r1", "model_name": "m", "model_version": "1", "parameters": {"bundle_digest": "d"}}
    assert outputs[:4] == [
        {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["xin chào", ""]},
        {"name": "language", "datatype": "BYTES", "shape": [2], "data": ["vi", ""]},
        {"name": "duration_seconds", "datatype": "FP64", "shape": [2], "data": [1.25, 2.0]},
        {"name": "confidence", "datatype": "FP64", "shape": [2], "data": [0.85, 0.0]},
    ]
    assert [len(json.loads(words)) for words in outputs[4]["data"]] == [2, 0]


@pytest.mark.parametrize(
    "binaries", [(False,) * 5, (True,) * 5, (True, False, True, False, True), (False, True) * 2 + (False,)]
)
def test_tritons_client_reads_the_answer(binaries):
    asked = Asked(None, [], tuple(map(Output, ALL, binaries)))
    body, length = write(asked, [HELLO, SILENCE])
    assert (length is None) == (not any(binaries))
    result = InferResult.from_response_body(body, header_length=length)

    def texts(name):
        return [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy(name)]

    assert texts("text") == ["xin chào", ""]
    assert texts("language") == ["vi", ""]
    assert result.as_numpy("duration_seconds").tolist() == [1.25, 2.0]
    assert result.as_numpy("confidence").tolist() == [0.85, 0.0]
    assert tuple(Word(**word) for word in json.loads(texts("words")[0])) == HELLO.words


def test_kserves_client_reads_the_answer():
    from kserve import InferResponse

    body, length = write(Asked(None, [], (Output("text", binary=True), Output("confidence", binary=False))), [HELLO])
    answer = InferResponse.from_bytes(body, length)
    assert (answer.id, answer.model_name, answer.parameters) == ("r1", "m", {"bundle_digest": "d"})
    assert answer.get_output_by_name("text").as_numpy().tolist() == ["xin chào"]
    body, _ = write(Asked(None, [], (Output("text", binary=False),)), [HELLO])
    assert InferResponse.from_rest(json.loads(body)).outputs[0].data == ["xin chào"]
