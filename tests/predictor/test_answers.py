"""predictor.answers: one status for each error, in the shape that the route's clients read."""

import http
import json

import grpc
import pytest

from predictor import answers
from predictor.errors import (
    AudioTooLong,
    BadRequest,
    DeadlineExceeded,
    InferenceFailed,
    InvalidAudio,
    InvalidBundle,
    Overloaded,
    PayloadTooLarge,
    PredictorError,
    RateLimited,
    Unauthenticated,
    UnknownModel,
    UnsupportedAudio,
)

# Each error with its status in HTTP and in gRPC, and what /asr calls it: clients rely on these.
ANSWERS = [
    (BadRequest("x must be a number"), 400, "INVALID_ARGUMENT", "INVALID_REQUEST"),
    (Unauthenticated(given=True), 401, "UNAUTHENTICATED", "UNAUTHENTICATED"),
    (UnknownModel("x", ["y"]), 404, "NOT_FOUND", "MODEL_NOT_FOUND"),
    (PayloadTooLarge(9), 413, "INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"),
    (AudioTooLong(9), 413, "INVALID_ARGUMENT", "AUDIO_TOO_LONG"),
    (UnsupportedAudio("text"), 415, "INVALID_ARGUMENT", "UNSUPPORTED_AUDIO"),
    (InvalidAudio("it is empty"), 422, "INVALID_ARGUMENT", "INVALID_AUDIO"),
    (RateLimited(60, 7), 429, "RESOURCE_EXHAUSTED", "RATE_LIMITED"),
    (InferenceFailed(), 500, "INTERNAL", "INFERENCE_FAILED"),
    (InvalidBundle(["model.onnx is missing"]), 500, "INTERNAL", "INFERENCE_FAILED"),
    (Overloaded("requests", 2, 1, 7), 503, "RESOURCE_EXHAUSTED", "OVERLOADED"),
    (DeadlineExceeded(0.5), 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
]


def _leaves(kind=PredictorError):
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in _leaves(child)} if below else {kind}


def test_every_error_there_is_has_an_answer():
    assert {type(error) for error, *_ in ANSWERS} == _leaves()


@pytest.mark.parametrize(("error", "code", "name", "_"), ANSWERS, ids=lambda v: type(v).__name__)
def test_an_error_has_one_status_in_http_and_in_grpc(error, code, name, _):
    assert answers.status(error) == (code, name)
    assert hasattr(grpc.StatusCode, name)
    assert http.HTTPStatus(code)


@pytest.mark.parametrize(("error", "code", "_", "asr_code"), ANSWERS, ids=lambda v: type(v).__name__)
def test_a_refusal_is_in_the_shape_of_its_route(error, code, _, asr_code):
    for path in ("/v2/models/vani/infer", "/v1/models/vani:predict", "/transcribe", "/", "/v1/audio"):
        status, _, body = answers.refusal(path, error)
        assert (status, json.loads(body)) == (code, {"error": str(error)})
    status, _, body = answers.refusal("/asr", error)
    assert (status, json.loads(body)) == (code, {"error_code": asr_code, "message": str(error)})
    status, _, body = answers.refusal("/v1/audio/transcriptions", error)
    assert status == code
    assert json.loads(body)["error"]["message"] == str(error)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("error", "code", "_", "__"), ANSWERS, ids=lambda v: type(v).__name__)
def test_headers_say_when_to_come_again_and_how_to_bring_a_key(error, code, _, __):
    _, headers, _ = answers.refusal("/asr", error)
    wanted = {429: {"retry-after": "7"}, 503: {"retry-after": "7"}, 401: {"www-authenticate": "Bearer"}}
    assert headers == wanted.get(code, {})


def test_text_is_sent_as_it_is_written():
    assert "thử" in answers.body("/asr", 400, "thử").decode()
    assert json.loads(answers.body("/v1/audio/x", 400, "thử"))["error"]["message"] == "thử"


def test_a_refusal_of_the_framework_has_the_shape_too():
    assert json.loads(answers.body("/asr", 404, "Not Found")) == {
        "error_code": "INVALID_REQUEST",
        "message": "Not Found",
    }


@pytest.mark.parametrize("path", ["/asr", "/v1/audio/transcriptions", "/v2/models/vani/infer"])
def test_what_nobody_foresaw_is_a_fixed_sentence(path):
    assert answers.unforeseen(path) == answers.refusal(path, InferenceFailed())
    assert answers.unforeseen(path)[0] == 500
