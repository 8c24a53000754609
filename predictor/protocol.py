"""Wire formats to Clips, and Transcripts to wire formats: V2 (JSON and binary tensors) and V1.

Nothing here knows a web framework. What arrives is plain dicts, lists, strings and bytes of any shape that a client may
invent, so every access is checked and every refusal is a BadRequest that names the field.
"""

import binascii
import json
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import prod
from typing import Any, TypeGuard

import orjson

from predictor.errors import BadRequest
from predictor.transcript import Transcript

MAX_CLIPS = 64  # in one request; more belong into more requests, where they can be scheduled
# Beyond these the arithmetic on what a client claims would cost more than the audio that it sends.
_MAX_DIGITS = 18
_MAX_RANK = 8
_BASE64_PIECE = 1 << 18  # characters, a multiple of four
_LONG_TEXT = 1 << 16  # bytes from which a JSON string is audio rather than a name

# The tensors of the V2 protocol, as the metadata route shows them.
INPUTS = (
    {"name": "audio", "datatype": "BYTES", "shape": [-1]},
    {"name": "language", "datatype": "BYTES", "shape": [-1]},
)
_OUTPUTS: dict[str, tuple[str, Callable[[Transcript], str | float]]] = {
    "text": ("BYTES", lambda t: t.text),
    "language": ("BYTES", lambda t: t.language or ""),
    "duration_seconds": ("FP64", lambda t: t.duration_seconds),
    "words": ("BYTES", lambda t: json.dumps([asdict(word) for word in t.words], ensure_ascii=False)),
}
OUTPUTS = tuple({"name": name, "datatype": datatype, "shape": [-1]} for name, (datatype, _) in _OUTPUTS.items())


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording to transcribe: the file's bytes and the language, where the caller names one."""

    data: bytes
    language: str | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One V2 input: either `values` as JSON carried them, or the `raw` bytes of the binary extension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any] | None
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    name: str
    datatype: str
    values: list[str | float]


def parse_json(body: bytes | bytearray) -> Any:  # noqa: ANN401  (JSON is what it is)
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise BadRequest("the body is not JSON") from error


def _parse_head(body: bytes | bytearray) -> Any:  # noqa: ANN401
    """`parse_json`, but with the long strings cut out first and put back as memoryviews of the body.

    A JSON parser holds the interpreter's lock for as long as the body is, 20 ms for ten minutes of audio in base64;
    finding a string's end takes a twentieth of that. A long string with escapes is no base64 and is refused.
    """
    if len(body) < _LONG_TEXT:
        return parse_json(body)
    view, mark = memoryview(body), uuid.uuid4().hex
    kept: list[bytes | memoryview] = []
    cut: dict[str, memoryview] = {}
    at, opening = 0, body.find(b'"')
    while opening >= 0 and (closing := _closing_quote(body, opening)) >= 0:
        if closing - opening > _LONG_TEXT:
            name = f"{mark}{len(cut)}"
            cut[name] = view[opening + 1 : closing]
            kept += [view[at : opening + 1], name.encode()]
            at = closing
        opening = body.find(b'"', closing + 1)
    try:
        return _restored(parse_json(b"".join([*kept, view[at:]])), cut)
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error


def _closing_quote(body: bytes | bytearray, opening: int) -> int:
    """Where the JSON string ends that starts with the quote at `opening`; -1 where it does not."""
    at = body.find(b'"', opening + 1)
    while at >= 0:
        escapes = at - 1
        while body[escapes] == ord("\\"):
            escapes -= 1
        if (at - 1 - escapes) % 2 == 0:
            break
        at = body.find(b'"', at + 1)
    return at


def _restored(value: Any, cut: Mapping[str, memoryview]) -> Any:  # noqa: ANN401
    """The parsed value with its long strings back in their places, wherever they stand as values."""
    if isinstance(value, str):
        return cut.get(value, value)
    if isinstance(value, list):
        return [_restored(item, cut) for item in value]
    if isinstance(value, dict):
        return {key: _restored(item, cut) for key, item in value.items()}
    return value


def read_v2_body(body: bytes | bytearray, json_bytes: str) -> tuple[dict[str, Any], list[Tensor]]:
    """A V2 request: a JSON head of `json_bytes` bytes, then the tensors of the binary extension, in order.

    Returns the head and its inputs. The length is the header's text, not yet a number; without the extension it is
    the whole body's.
    """
    if not json_bytes.isdecimal() or len(json_bytes) > _MAX_DIGITS or int(json_bytes) > len(body):
        raise BadRequest(f"Inference-Header-Content-Length must be a number within the body's {len(body)} bytes")
    end = int(json_bytes)
    head = _parse_head(body if end == len(body) else body[:end])
    inputs = head.get("inputs") if isinstance(head, dict) else None
    if not isinstance(inputs, list):
        raise BadRequest("inputs must be a list of tensors")
    offset, tensors = int(json_bytes), []
    for item in inputs:
        tensor, offset = _read_tensor(item, body, offset)
        tensors.append(tensor)
    return head, tensors


def _read_tensor(item: object, body: bytes | bytearray, offset: int) -> tuple[Tensor, int]:
    if not isinstance(item, dict):
        raise BadRequest("inputs must be a list of tensors")
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not _is_shape(shape):
        raise BadRequest("every input needs a name, a datatype and a shape of whole numbers")
    parameters = item.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        values = item.get("data")
        if not isinstance(values, list):
            raise BadRequest(f"input {name[:40]!r} has neither data nor binary_data_size")
        return Tensor(name, datatype, tuple(shape), values, None), offset
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or offset + size > len(body):
        raise BadRequest(f"binary_data_size of input {name[:40]!r} goes beyond the body")
    return Tensor(name, datatype, tuple(shape), None, bytes(body[offset : offset + size])), offset + size


def _is_shape(shape: object) -> TypeGuard[list[int]]:
    return isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)


def read_v2(tensors: Sequence[Tensor], parameters: Mapping[str, Any] | None) -> list[Clip]:
    """Clips from an `audio` tensor of encoded files (base64 in JSON) and their languages.

    A language comes from a `language` tensor of as many elements or of one, or from the request parameter `language`.
    """
    named = {tensor.name: tensor for tensor in tensors}
    unknown = sorted(set(named) - {str(known["name"]) for known in INPUTS})
    if unknown:
        raise BadRequest(f"input {unknown[0][:40]!r} is not one of this model's: audio, language")
    if len(named) < len(tensors):
        raise BadRequest("two inputs have the same name")
    if "audio" not in named:
        raise BadRequest("the input 'audio' is missing")
    audio = named["audio"]
    files = list(_elements(audio))
    if audio.raw is None:
        files = [_from_base64(value, "input 'audio'") for value in files]
    return [Clip(data, code) for data, code in zip(files, _languages(named, parameters, len(files)), strict=True)]


def _languages(named: Mapping[str, Tensor], parameters: Mapping[str, Any] | None, count: int) -> list[str | None]:
    if "language" in named:
        codes = [_as_language(value) for value in _elements(named["language"])]
    else:
        codes = [_as_language((parameters or {}).get("language"))]
    if len(codes) == 1:
        return codes * count
    if len(codes) != count:
        raise BadRequest(f"input 'language' has {len(codes)} elements for {count} of audio; one or as many are needed")
    return codes


def _as_language(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is not None and not isinstance(value, str):
        raise BadRequest("language must be text, such as 'vi'")
    return value or None


def _elements(tensor: Tensor) -> Iterator[Any]:
    """The elements of a BYTES tensor in row-major order, as many as its shape says."""
    if tensor.datatype != "BYTES":
        raise BadRequest(f"input {tensor.name!r} has the datatype {tensor.datatype[:20]!r}; BYTES is needed")
    values = _flatten(tensor.values) if tensor.raw is None else _split_bytes(tensor.raw, tensor.name)
    elements = list(islice(values, MAX_CLIPS + 1))
    if len(tensor.shape) > _MAX_RANK or max(tensor.shape, default=1) > MAX_CLIPS:
        raise BadRequest(f"input {tensor.name!r} has a shape beyond {_MAX_RANK} dimensions or {MAX_CLIPS} elements")
    count = prod(tensor.shape)
    if len(elements) != count or not 1 <= count <= MAX_CLIPS:
        raise BadRequest(
            f"input {tensor.name!r} has the shape {list(tensor.shape)[:8]} and {len(elements)} elements; "
            f"the two must agree, with at least 1 and at most {MAX_CLIPS}"
        )
    return iter(elements)


def _flatten(values: object) -> Iterator[Any]:
    """Nested lists as one, without recursion: a client may nest them as deep as it likes."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple):
            pending.extend(reversed(value))
        else:
            yield value


def _split_bytes(raw: bytes, name: str) -> Iterator[bytes]:
    """A raw BYTES tensor: each element a little-endian uint32 length and that many bytes."""
    offset = 0
    while offset < len(raw):
        if offset + 4 > len(raw):
            raise BadRequest(f"input {name!r} ends within an element's length")
        (size,) = struct.unpack_from("<I", raw, offset)
        offset += 4 + size
        if offset > len(raw):
            raise BadRequest(f"input {name!r} ends within an element of {size} bytes")
        yield raw[offset - size : offset]


def _from_base64(value: object, field: str) -> bytes:
    if not isinstance(value, str | bytes | memoryview):
        raise BadRequest(f"{field} must hold base64 text")
    try:
        text = value.encode("ascii") if isinstance(value, str) else value
        # In pieces: decoding holds the interpreter's lock, and a long recording would hold up every other thread.
        pieces = range(0, len(text), _BASE64_PIECE)
        decoded = [binascii.a2b_base64(text[at : at + _BASE64_PIECE], strict_mode=True) for at in pieces]
    except ValueError as error:
        raise BadRequest(f"{field} is not base64") from error
    if any(len(piece) < _BASE64_PIECE // 4 * 3 for piece in decoded[:-1]):
        raise BadRequest(f"{field} is not base64: it has padding in its middle")
    return b"".join(decoded)


def write_v2(transcripts: Sequence[Transcript], requested: Sequence[str] | None) -> list[OutputTensor]:
    """The requested output tensors, or all; one element a clip."""
    names = list(_OUTPUTS) if requested is None else requested
    unknown = [name for name in names if name not in _OUTPUTS]
    if unknown:
        raise BadRequest(f"output {unknown[0][:40]!r} is not one of this model's: {', '.join(_OUTPUTS)}")
    return [OutputTensor(name, _OUTPUTS[name][0], [_OUTPUTS[name][1](t) for t in transcripts]) for name in names]


def read_v1(body: object) -> list[Clip]:
    """Clips from {"instances": [...]}; an instance is base64 text or {"audio": base64, "language": code}.

    The audio of an instance may also be {"b64": ...}, TensorFlow Serving's way to write bytes.
    """
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_CLIPS:
        raise BadRequest(f"instances must be a list of 1 to {MAX_CLIPS} recordings")
    return [_read_instance(instance, f"instances[{index}]") for index, instance in enumerate(instances)]


def _read_instance(instance: object, field: str) -> Clip:
    language = instance.get("language") if isinstance(instance, dict) else None
    audio = instance.get("audio", instance) if isinstance(instance, dict) else instance
    if isinstance(audio, dict):
        audio = audio.get("b64")
    return Clip(_from_base64(audio, field), _as_language(language))


def write_v1(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """{"predictions": [...]}, a Transcript each."""
    return {"predictions": [asdict(transcript) for transcript in transcripts]}
