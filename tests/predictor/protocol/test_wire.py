"""Taking the audio out of a message is judged by protobuf itself, which must read the same either way."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from predictor.protocol import wire

RAW = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
TEXTS = st.text(max_size=200)


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    tensors = [
        pb.ModelInferRequest.InferInputTensor(
            name=name, datatype="BYTES", shape=draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
        )
        for name in draw(st.lists(TEXTS, max_size=3))
    ]
    parameters = draw(st.dictionaries(TEXTS, st.integers(-5, 2**40), max_size=3))
    return pb.ModelInferRequest(
        model_name=draw(TEXTS),
        id=draw(TEXTS),
        inputs=tensors,
        parameters={name: pb.InferParameter(int64_param=value) for name, value in parameters.items()},
        raw_input_contents=draw(st.lists(st.binary(max_size=400), max_size=4)),
    )


@given(messages(), messages())
def test_what_is_taken_out_and_what_is_left_are_the_message(
    one: pb.ModelInferRequest, two: pb.ModelInferRequest
) -> None:
    joined = one.SerializeToString() + two.SerializeToString()  # which is how messages are merged: fields in any order
    whole = pb.ModelInferRequest.FromString(joined)
    rest, raw = wire.take_out(joined, RAW)
    read = pb.ModelInferRequest.FromString(rest)
    assert [bytes(view) for view in raw] == list(whole.raw_input_contents)
    whole.ClearField("raw_input_contents")
    assert read == whole


def test_the_audio_is_not_copied() -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"x" * 1000]).SerializeToString()
    rest, (audio,) = wire.take_out(message, RAW)
    assert audio.obj is message
    assert len(rest) < 10


@given(st.binary(max_size=200))
def test_of_bytes_that_protobuf_refuses_nothing_is_taken(garbage: bytes) -> None:
    try:
        whole = pb.ModelInferRequest.FromString(garbage)
    except DecodeError:
        with pytest.raises(DecodeError):
            pb.ModelInferRequest.FromString(wire.take_out(garbage, RAW)[0])
    else:
        rest, raw = wire.take_out(garbage, RAW)
        kept = list(pb.ModelInferRequest.FromString(rest).raw_input_contents)
        assert [*map(bytes, raw), *kept] == list(whole.raw_input_contents)


@given(messages(), st.integers(0, 1200))
def test_a_message_that_was_cut_is_read_as_protobuf_reads_it(message: pb.ModelInferRequest, length: int) -> None:
    cut = message.SerializeToString()[:length]
    rest, raw = wire.take_out(cut, RAW)
    try:
        whole = pb.ModelInferRequest.FromString(cut)
    except DecodeError:
        assert (rest, raw) == (cut, [])
    else:
        assert [bytes(view) for view in raw] == list(whole.raw_input_contents)
