"""V2, the Open Inference Protocol over HTTP: JSON, or JSON with the tensors' bytes after it.

In the binary tensor extension a header gives the JSON's length; an input with `binary_data_size` has its data behind
the JSON, in the order of the inputs, and an output with `binary_data` comes back so.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson

from predictor.errors import BadRequest
from predictor.protocol import Clip
from predictor.protocol.payload import Numbers, parse_json
from predictor.protocol.tensors import INPUTS, OUTPUTS, OutputTensor, Tensor, outputs, read_tensors
from predictor.transcript import Transcript

__all__ = ["INPUTS", "OUTPUTS", "Asked", "Output", "OutputTensor", "Tensor", "outputs", "read", "read_tensors", "write"]

_MAX_DIGITS = 18  # of a length


@dataclass(frozen=True, slots=True)
class Output:
    """An output that was asked for, and whether its data shall stand behind the JSON."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A V2 request; `outputs` is None for all of them in JSON."""

    id: str | None
    clips: list[Clip]
    outputs: tuple[Output, ...] | None


def read(body: bytes | bytearray, json_bytes: str | None) -> Asked:
    """A request. `json_bytes` is the text of the Inference-Header-Content-Length header: None without the extension."""
    end = len(body) if json_bytes is None else _head_length(json_bytes, len(body))
    head = parse_json(body if end == len(body) else body[:end])
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise BadRequest("inputs must be a list of tensors")
    identity, parameters = head.get("id"), _parameters(head, "the request")
    if not isinstance(identity, str | None):
        raise BadRequest("id must be text")
    requested = _requested(head.get("outputs"), binary=parameters.get("binary_data_output") is True)
    tensors, view, offset = [], memoryview(body), end
    for item in head["inputs"]:
        tensor = _tensor(item, view[offset:])
        tensors.append(tensor)
        offset += len(tensor.raw or b"")
    clips = read_tensors(tensors, parameters)
    if offset != len(body):
        raise BadRequest(f"{len(body) - offset} bytes at the body's end belong to no input")
    return Asked(identity, clips, requested)


def _head_length(json_bytes: str, body_bytes: int) -> int:
    if not json_bytes.isdecimal() or len(json_bytes) > _MAX_DIGITS or int(json_bytes) > body_bytes:
        raise BadRequest(f"Inference-Header-Content-Length must be a number within the body's {body_bytes} bytes")
    return int(json_bytes)


def _parameters(item: Mapping[str, Any], whose: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if not isinstance(parameters, dict | None):
        raise BadRequest(f"the parameters of {whose} must be an object")
    return parameters or {}


def _tensor(item: object, rest: memoryview) -> Tensor:
    """One of the inputs; its raw bytes, if it has any, are the first of the `rest`."""
    if not isinstance(item, dict):
        raise BadRequest("inputs must be a list of tensors")
    name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not _is_shape(shape):
        raise BadRequest("every input needs a name, a datatype and a shape of whole numbers")
    whose = f"input {name[:40]!r}"
    parameters = _parameters(item, whose)
    size, values = parameters.get("binary_data_size"), item.get("data")
    if size is None:
        if not isinstance(values, list | Numbers):
            raise BadRequest(f"{whose} has neither data nor binary_data_size")
        return Tensor(name, datatype, tuple(shape), values, None, parameters)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise BadRequest(f"binary_data_size of {whose} goes beyond the body")
    return Tensor(name, datatype, tuple(shape), None, rest[:size], parameters)


def _is_shape(shape: object) -> TypeGuard[list[int]]:
    return isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)


def _requested(items: object, *, binary: bool) -> tuple[Output, ...] | None:
    """The requested outputs, `binary` where they do not say otherwise; unknown ones are refused before the work."""
    if not isinstance(items, list | None):
        raise BadRequest("outputs must be a list")
    if not items:
        return tuple(Output(str(known["name"]), binary=True) for known in OUTPUTS) if binary else None
    requested = []
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadRequest("every requested output needs a name")
        parameters = _parameters(item, f"output {name[:40]!r}")
        if "shared_memory_region" in parameters:
            raise BadRequest("outputs in shared memory are not offered")
        requested.append(Output(name, binary=bool(parameters.get("binary_data", binary))))
    names = [output.name for output in requested]
    outputs([], names)
    if len(set(names)) < len(names):
        raise BadRequest("an output is requested twice")
    return tuple(requested)


def write(  # noqa: PLR0913  (what a response consists of)
    asked: Asked,
    transcripts: Sequence[Transcript],
    *,
    model_name: str,
    model_version: str,
    parameters: dict[str, str],
    id: str,  # noqa: A002  (the protocol's own name)
) -> tuple[bytes, int | None]:
    """The response's body and, where an output in it is binary, the length of its JSON; else None."""
    binary = [output.binary for output in asked.outputs] if asked.outputs else [False] * len(OUTPUTS)
    tensors = outputs(transcripts, [output.name for output in asked.outputs] if asked.outputs else None)
    described, tail = [], []
    for tensor, is_binary in zip(tensors, binary, strict=True):
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": [len(tensor.values)]}
        if is_binary:
            raw = raw_bytes(tensor)
            item["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            item["data"] = tensor.values
        described.append(item)
    head = orjson.dumps(
        {
            "id": id,
            "model_name": model_name,
            "model_version": model_version,
            "parameters": parameters,
            "outputs": described,
        }
    )
    return b"".join((head, *tail)), len(head) if tail else None


def raw_bytes(tensor: OutputTensor) -> bytes:
    if tensor.datatype == "FP64":
        return struct.pack(f"<{len(tensor.values)}d", *tensor.values)
    encoded = [str(value).encode() for value in tensor.values]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
