"""Errors to answers: the one table of statuses, and the shape that each route's clients read."""

import json

from predictor.errors import (
    AudioTooLong,
    BadRequest,
    DeadlineExceeded,
    InferenceFailed,
    InvalidAudio,
    ModelError,
    Overloaded,
    PayloadTooLarge,
    PredictorError,
    RateLimited,
    Unauthenticated,
    UnknownModel,
    UnsupportedAudio,
)
from predictor.protocol import openai, plain

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a caller who did not wait; it is only logged and counted

# HTTP status, and the name of gRPC's.
STATUS: dict[type[PredictorError], tuple[int, str]] = {
    BadRequest: (400, "INVALID_ARGUMENT"),
    Unauthenticated: (401, "UNAUTHENTICATED"),
    UnknownModel: (404, "NOT_FOUND"),
    PayloadTooLarge: (413, "INVALID_ARGUMENT"),
    AudioTooLong: (413, "INVALID_ARGUMENT"),
    UnsupportedAudio: (415, "INVALID_ARGUMENT"),
    InvalidAudio: (422, "INVALID_ARGUMENT"),
    RateLimited: (429, "RESOURCE_EXHAUSTED"),
    ModelError: (500, "INTERNAL"),
    Overloaded: (503, "RESOURCE_EXHAUSTED"),
    DeadlineExceeded: (504, "DEADLINE_EXCEEDED"),
}


def status(error: PredictorError) -> tuple[int, str]:
    """The HTTP status of an error and the name of its gRPC code."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def refusal(path: str, error: PredictorError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and JSON body that tell a caller of a path what went wrong."""
    code, _ = status(error)
    headers = {}
    if isinstance(error, RateLimited | Overloaded):
        headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return code, headers, body(path, code, str(error), error)


def body(path: str, code: int, message: str, error: PredictorError | None = None) -> bytes:
    """An error in the shape of the path: OpenAI's, the seed's on /asr, KServe's elsewhere."""
    if path.startswith("/v1/audio/"):
        return openai.error(message, code)
    content = plain.asr_error(error, message) if path == "/asr" else {"error": message}
    return json.dumps(content, ensure_ascii=False).encode()


def unforeseen(path: str) -> tuple[int, dict[str, str], bytes]:
    """What a caller is told when nobody knows what happened: a fixed sentence."""
    return refusal(path, InferenceFailed())
