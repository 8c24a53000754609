"""V2 tensors to Clips, and Transcripts to V2 tensors. Tensors come from JSON, from raw bytes or from gRPC messages.

`audio` is BYTES, an element a file, or samples: FP32 in [-1, 1], INT16 or UINT8 of the shape [N] for one clip and
[B, N] for B of them, at the parameter `sample_rate` of the tensor or of the request, or at 16 kHz. UINT8 is samples
only where `sample_rate` is given; without it, it is the bytes of a file, since many clients send files so and a wrong
guess would make words out of noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any, TypeVar

import orjson
from numpy.typing import NDArray

from predictor.errors import BadRequest
from predictor.features import SAMPLE_RATE_HZ
from predictor.protocol import MAX_CLIPS, Clip, Pcm
from predictor.protocol.fields import as_decoding, as_hotwords, as_language, from_base64
from predictor.protocol.payload import Numbers
from predictor.protocol.samples import DTYPES, read_samples
from predictor.transcript import Transcript

T = TypeVar("T")

_MAX_RANK = 8  # beyond it, the arithmetic on what a client claims would cost more than the audio that it sends
_MIN_RATE_HZ, _MAX_RATE_HZ = 8000, 192_000  # telephones; what studios record at


def _confidence(transcript: Transcript) -> float:
    """The mean of the words' confidences, in (0, 1]; 0 where there are none."""
    words = transcript.words
    return round(sum(word.confidence for word in words) / len(words), 4) if words else 0.0


# The tensors of the V2 protocol, as the metadata route shows them.
INPUTS = (
    {"name": "audio", "datatype": "BYTES", "shape": [-1]},
    {"name": "language", "datatype": "BYTES", "shape": [-1]},
    {"name": "hotwords", "datatype": "BYTES", "shape": [-1]},
)
_OUTPUTS: dict[str, tuple[str, Callable[[Transcript], str | float]]] = {
    "text": ("BYTES", lambda t: t.text),
    "language": ("BYTES", lambda t: t.language or ""),
    "duration_seconds": ("FP64", lambda t: t.duration_seconds),
    "confidence": ("FP64", _confidence),
    "words": ("BYTES", lambda t: orjson.dumps(t.words).decode()),
}
OUTPUTS = tuple({"name": name, "datatype": datatype, "shape": [-1]} for name, (datatype, _) in _OUTPUTS.items())


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One V2 input: its `values` as JSON or gRPC carried them, or its `raw` bytes.

    In `values`, a str or memoryview is base64 text from JSON, and bytes are a file from gRPC.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any] | Numbers | None
    raw: bytes | memoryview | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One element a clip: BYTES are text, FP64 are numbers."""

    name: str
    datatype: str
    values: list[str | float]


def read_tensors(tensors: Sequence[Tensor], parameters: Mapping[str, Any]) -> list[Clip]:
    """Clips from the `audio` tensor, each with its language and hotwords.

    These come from tensors of as many elements or of one, or else from the request's parameters of the same names;
    `decoding` is a parameter alone.
    """
    named = {tensor.name: tensor for tensor in tensors}
    known = [str(tensor["name"]) for tensor in INPUTS]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise BadRequest(f"input {unknown[0][:40]!r} is not one of this model's: {', '.join(known)}")
    if len(named) < len(tensors):
        raise BadRequest("two inputs have the same name")
    if "audio" not in named:
        raise BadRequest("the input 'audio' is missing")
    audio = named["audio"]
    data = list(_files(audio)) if audio.datatype == "BYTES" else _recordings(audio, parameters)
    languages = _for_each("language", as_language, named, parameters, len(data))
    hotwords = _for_each("hotwords", as_hotwords, named, parameters, len(data))
    decoding = as_decoding(parameters.get("decoding"))
    return [Clip(*each, decoding) for each in zip(data, languages, hotwords, strict=True)]


def _files(audio: Tensor) -> Iterator[bytes | memoryview]:
    for element in _elements(audio):
        yield element if audio.raw is not None or type(element) is bytes else from_base64(element, "input 'audio'")


def _recordings(audio: Tensor, parameters: Mapping[str, Any]) -> Sequence[memoryview | Pcm]:
    if audio.datatype not in DTYPES:
        raise BadRequest(
            f"input 'audio' has the datatype {audio.datatype[:20]!r}; "
            f"BYTES is needed for files, or {', '.join(DTYPES)} for samples"
        )
    if not 1 <= len(audio.shape) <= 2 or (len(audio.shape) == 2 and not 1 <= audio.shape[0] <= MAX_CLIPS):  # noqa: PLR2004
        raise BadRequest(f"input 'audio' must have the shape [N] or [B, N] of samples, with 1 to {MAX_CLIPS} clips B")
    stated = audio.parameters.get("sample_rate", parameters.get("sample_rate"))
    rate_hz = SAMPLE_RATE_HZ if stated is None else _sample_rate(stated)
    rows: NDArray[Any] = read_samples(audio.datatype, audio.shape, audio.values, audio.raw)
    rows = rows.reshape(-1, audio.shape[-1])
    if audio.datatype == "UINT8" and stated is None:
        return [row.data for row in rows]
    return [Pcm(row, rate_hz) for row in rows]


def _sample_rate(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(_MAX_RATE_HZ)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _MIN_RATE_HZ <= value <= _MAX_RATE_HZ:
        raise BadRequest(f"sample_rate must be a number from {_MIN_RATE_HZ} to {_MAX_RATE_HZ} Hz")
    if value != int(value):
        raise BadRequest("sample_rate must be a whole number of Hz")
    return int(value)


def _for_each(
    name: str, read: Callable[[object], T], named: Mapping[str, Tensor], parameters: Mapping[str, Any], count: int
) -> list[T]:
    if name not in named:
        return [read(parameters.get(name))] * count
    values = [read(element) for element in _elements(named[name])]
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise BadRequest(f"input {name!r} has {len(values)} elements for {count} of audio; one or as many are needed")
    return values


def _elements(tensor: Tensor) -> list[Any]:
    """The elements of a BYTES tensor in row-major order, as many as its shape says."""
    if tensor.datatype != "BYTES":
        raise BadRequest(f"input {tensor.name!r} has the datatype {tensor.datatype[:20]!r}; BYTES is needed")
    values = _flatten(tensor.values) if tensor.raw is None else _split_bytes(memoryview(tensor.raw), tensor.name)
    elements = list(islice(values, MAX_CLIPS + 1))
    if len(tensor.shape) > _MAX_RANK or max(tensor.shape, default=1) > MAX_CLIPS:
        raise BadRequest(f"input {tensor.name!r} has a shape beyond {_MAX_RANK} dimensions or {MAX_CLIPS} elements")
    count = prod(tensor.shape)
    if len(elements) != count or not 1 <= count <= MAX_CLIPS:
        raise BadRequest(
            f"input {tensor.name!r} has the shape {list(tensor.shape)} and {len(elements)} elements; "
            f"the two must agree, with at least 1 and at most {MAX_CLIPS}"
        )
    return elements


def _flatten(values: object) -> Iterator[Any]:
    """Nested lists as one, without recursion: a client may nest them as deep as it likes."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, list | tuple):
            pending.extend(reversed(value))
        else:
            yield value


def _split_bytes(raw: memoryview, name: str) -> Iterator[memoryview]:
    """A raw BYTES tensor: each element a little-endian uint32 length and that many bytes."""
    offset = 0
    while offset < len(raw):
        if offset + 4 > len(raw):
            raise BadRequest(f"input {name!r} ends within an element's length")
        size = int.from_bytes(raw[offset : offset + 4], "little")
        offset += 4 + size
        if offset > len(raw):
            raise BadRequest(f"input {name!r} ends within an element of {size} bytes")
        yield raw[offset - size : offset]


def outputs(transcripts: Sequence[Transcript], names: Sequence[str] | None) -> list[OutputTensor]:
    """The tensors of these names, or all; of no transcripts, to refuse unknown names before the work is done."""
    wanted = list(_OUTPUTS) if names is None else names
    unknown = [name for name in wanted if name not in _OUTPUTS]
    if unknown:
        raise BadRequest(f"output {unknown[0][:40]!r} is not one of this model's: {', '.join(_OUTPUTS)}")
    return [OutputTensor(name, _OUTPUTS[name][0], [_OUTPUTS[name][1](t) for t in transcripts]) for name in wanted]
