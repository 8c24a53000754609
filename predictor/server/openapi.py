"""What /openapi.json says of each route: as keyword arguments for its decorator, beside which nothing is inferred.

Bodies are read by predictor.protocol and not by the framework, so they are described here.
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from fastapi.openapi.utils import get_openapi
from starlette.routing import BaseRoute

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_TEXTS = {"type": "array", "items": _TEXT}
_CODE = {"type": "string", "description": "a language code such as vi; left out: identified from the audio"}
_AUDIO = {"type": "string", "contentEncoding": "base64", "description": "a whole audio file"}
_FILE = {"type": "string", "format": "binary", "description": "a whole audio file"}
_TENSORS = {"type": "string", "format": "binary", "description": "JSON, then the bytes of its tensors in their order"}
_HOTWORDS = {"type": "string", "description": "words and names to listen for, with commas between"}
_ANY = {"type": "object"}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _all(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has all of these."""
    return {"type": "object", "required": list(properties), "properties": properties}


_KSERVE_ERROR = _all(error=_TEXT)
_SEED_ERROR = _all(error_code=_TEXT, message=_TEXT)
_OPENAI_ERROR = _all(error=_all(message=_TEXT, type=_TEXT))

_MEANINGS = {
    400: "the request does not follow the protocol",
    401: "no API key, or one that is not valid",
    404: "no such model, version or route",
    405: "the route is there, and not with this method",
    413: "more bytes or more audio than the limit",
    415: "no audio format that can be read",
    422: "a known format, but empty or damaged",
    429: "the key's audio seconds are used up; Retry-After says for how long",
    500: "the bundle is refused",
    503: "too much at once, Retry-After says for how long; or stopping",
    504: "not done within the time",
}
_LOOK = (400, 401, 429)  # of every route that needs a key
_WORK = (*_LOOK, 404, 413, 415, 422, 503, 504)
_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "schema": {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,9})?(ms|s)?$"},
    "description": "seconds that the caller will wait, such as 2.5 or 1500ms",
}
_HEAD_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "of a body with binary tensors: the bytes of its JSON",
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _errors(schema: dict[str, Any], codes: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    return {code: {"description": _MEANINGS[code], "content": _json(schema)} for code in codes}


def _route(  # noqa: PLR0913  (what a route is described by)
    summary: str,
    answer: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    error: dict[str, Any] = _KSERVE_ERROR,
    codes: tuple[int, ...] = (),
    body_needed: bool = True,
    headers: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """Keyword arguments for a route's decorator. `answer` and `body` map media types to schemas."""
    extra: dict[str, Any] = {"requestBody": {"required": body_needed, "content": body}} if body else {}
    if headers:
        extra["parameters"] = list(headers)
    extra["responses"] = {"200": {"description": "done", "content": answer}}
    return {"summary": summary, "openapi_extra": extra, "responses": _errors(error, codes), "response_model": None}


def _form(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"multipart/form-data": {"schema": {"type": "object", "required": required, "properties": properties}}}


_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": _TEXT,
        "datatype": _TEXT,
        "shape": _SHAPE,
        "data": {"type": "array", "items": {}},
        "parameters": _ANY,
    },
}
_V2_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}},
        "parameters": _ANY,
    },
}
_B64 = _all(b64=_AUDIO)
_DECODING = {"type": "string", "enum": ["ctc", "greedy", "rnnt"]}
_INSTANCE_FIELDS = {
    "audio": {"oneOf": [_AUDIO, _B64]},
    "language": _CODE,
    "hotwords": _HOTWORDS,
    "decoding": _DECODING,
}
_INSTANCE = {"oneOf": [_AUDIO, {"type": "object", "properties": {**_INSTANCE_FIELDS, "b64": _AUDIO}}]}
_V1_REQUEST = {
    "type": "object",
    "required": ["instances"],
    "properties": {"instances": {"type": "array", "items": _INSTANCE}},
}
_ASR_ITEM = {
    "type": "object",
    "required": ["audio_base64"],
    "properties": {
        "audio_base64": _AUDIO,
        "lang": _CODE,
        "decoding": _DECODING,
        "hotwords": _HOTWORDS,
    },
}
_ASR_ITEMS = {"type": "array", "items": _ASR_ITEM, "minItems": 1}

_LANGUAGE = {"type": ["string", "null"], "description": "a code; null where nothing was heard"}
_WORDS = {
    "type": "array",
    "items": _all(text=_TEXT, start_seconds=_NUMBER, end_seconds=_NUMBER, confidence=_NUMBER),
}
_V2_ANSWER = _all(
    id=_TEXT,
    model_name=_TEXT,
    model_version=_TEXT,
    parameters=_all(bundle_digest=_TEXT, request_id=_TEXT),
    outputs={"type": "array", "items": _all(name=_TEXT, datatype=_TEXT, shape=_SHAPE)},
)
_TRANSCRIPT = _all(text=_TEXT, language=_LANGUAGE, duration_seconds=_NUMBER, words=_WORDS)
_ASR_ANSWER = _all(transcription=_TEXT, lang=_LANGUAGE, decoding=_TEXT, duration_seconds=_NUMBER, words=_WORDS)
_TRANSCRIBE_ANSWER = _all(
    id=_TEXT,
    text=_TEXT,
    duration=_NUMBER,
    processing_time=_NUMBER,
    real_time_factor=_NUMBER,
    language=_LANGUAGE,
    model=_TEXT,
    timestamp=_TEXT,
    trace_id=_TEXT,
)

HEALTH = _route("Is the process alive, and what does it serve", _json(_ANY), codes=(503,))
READY = _route("Health", _json(_ANY), codes=(503,))
SERVER = _route(
    "The server's name, version and extensions", _json(_all(name=_TEXT, version=_TEXT, extensions=_TEXTS)), codes=_LOOK
)
LIST = _route("What is served", _json({}), codes=_LOOK)
METADATA = _route("Tensors, versions, languages and bundle digest of a model", _json(_ANY), codes=(*_LOOK, 404))
MODEL_READY = _route("Is a model ready", _json(_ANY), codes=(*_LOOK, 404, 503))
V2_INFER = _route(
    "Transcribe: V2 / Open Inference Protocol, in JSON or with binary tensors",
    _json(_V2_ANSWER) | {"application/octet-stream": {"schema": _TENSORS}},
    body=_json(_V2_REQUEST) | {"application/octet-stream": {"schema": _TENSORS}},
    codes=_WORK,
    headers=(_HEAD_LENGTH, _TIMEOUT),
)
V1_PREDICT = _route(
    "Transcribe: KServe's V1, in JSON, or the file itself as the body",
    _json(_all(predictions={"type": "array", "items": _TRANSCRIPT})),
    body=_json(_V1_REQUEST) | {"audio/*": {"schema": _FILE}},
    codes=_WORK,
    headers=(_TIMEOUT,),
)
INDEX = _route(
    "Models served, and those that could be loaded",
    _json({"type": "array", "items": _all(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)}),
    body=_json({"type": "object", "properties": {"ready": {"type": "boolean"}}}),
    body_needed=False,
    codes=(*_LOOK, 413, 503),
)
LOAD = _route(
    "Load a model of the repository, or stop serving one",
    _json(_ANY),
    body=_json({"type": "object", "properties": {"parameters": {"type": "object", "properties": {"version": _TEXT}}}}),
    body_needed=False,
    codes=(*_LOOK, 404, 413, 500, 503),
)
TRANSCRIPTIONS = _route(
    "Transcribe: OpenAI's route",
    _json(_ANY) | {"text/plain": {"schema": _TEXT}, "text/event-stream": {"schema": _TEXT}},
    body=_form(
        ["file"],
        file=_FILE,
        model=_TEXT,
        language=_CODE,
        prompt={"type": "string", "description": "words and names to listen for"},
        response_format={"type": "string", "enum": ["json", "text", "srt", "vtt", "verbose_json"]},
        temperature={"type": "number"},
        stream={"type": "boolean"},
        **{"timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["word", "segment"]}}},
        **{"include[]": {"type": "array", "items": {"type": "string", "enum": ["logprobs"]}}},
    ),
    error=_OPENAI_ERROR,
    codes=_WORK,
    headers=(_TIMEOUT,),
)
TRANSCRIBE = _route(
    "Transcribe: a plain upload",
    _json(_TRANSCRIBE_ANSWER),
    body=_form(
        ["file"],
        file=_FILE,
        model=_TEXT,
        language=_CODE,
        hotwords=_HOTWORDS,
        decoding=_DECODING,
        model_type={"type": "string", "enum": ["pytorch", "onnx"], "description": "checked, and without effect"},
    ),
    codes=_WORK,
    headers=(_TIMEOUT,),
)
ASR = _route(
    "Transcribe: base64 in JSON, one recording or a list",
    _json({"oneOf": [_ASR_ANSWER, {"type": "array", "items": _ASR_ANSWER}]}),
    body=_json({"oneOf": [_ASR_ITEM, _ASR_ITEMS, _all(inputs=_ASR_ITEMS), _all(dataframe_records=_ASR_ITEMS)]}),
    error=_SEED_ERROR,
    codes=_WORK,
    headers=(_TIMEOUT,),
)


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of our routes; KServe's own, which they stand before, are left out."""
    content = get_openapi(
        title="Vani",
        version=metadata.version("vani"),
        description="Speech recognition for Vietnamese and Indic languages. See docs/api.md.",
        routes=[route for route in routes if getattr(route, "openapi_extra", None)],
    )
    for methods in content["paths"].values():
        for operation in methods.values():
            _forget_inferred(operation)
    components = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return content | {"components": components, "security": [{}, {"key": []}]}


def _forget_inferred(operation: dict[str, Any]) -> None:
    """The framework infers a 422 of its own for every route with parameters; what it means is a 400 here."""
    inferred = operation["responses"].get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if "$ref" in inferred:
        del operation["responses"]["422"]
