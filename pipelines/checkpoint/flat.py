"""safetensors: eight bytes of length, a JSON header with the place of each tensor, then their bytes.

Read by hand because the library's NumPy side does not know bfloat16. Format: safetensors' README, "Format".
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint.tensor import Tensor, decode, item_bytes
from pipelines.errors import Permanent

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_LENGTH_BYTES = 8
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def matches(start: bytes) -> bool:
    """Whether a file that starts so, nine bytes, can be safetensors."""
    return start[_LENGTH_BYTES:] == b"{" and int.from_bytes(start[:_LENGTH_BYTES], "little") <= _MAX_HEADER_BYTES


def load(file: Path) -> dict[str, Tensor]:
    """The tensors by name. Raises Permanent where header and file do not agree."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + header_bytes
        if start > size:
            raise Permanent(f"{file.name} is cut off: its header says {header_bytes} bytes and {size} are there")
        try:
            header = json.loads(opened.read(header_bytes))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: _tensor(file, start, size, entry) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Permanent(f"{file.name} does not follow the format of safetensors: {error}") from error


def _tensor(file: Path, start: int, size: int, entry: Mapping[str, Any]) -> Tensor:
    dtype = _DTYPES.get(entry["dtype"], str(entry["dtype"]))
    shape = tuple(entry["shape"])
    first, end = entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, end)):
        raise ValueError("shapes and offsets must be whole numbers")
    if end - first != math.prod(shape) * item_bytes(dtype) or start + end > size:
        raise ValueError(f"a tensor of shape {shape} should lie in bytes {first} to {end} of {size - start}")
    return Tensor(shape, dtype, partial(_read, file, start + first, end - first, shape, dtype))


def _read(file: Path, offset: int, count: int, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    with file.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(count)
    if len(data) != count:
        raise Permanent(f"{file.name} is cut off")
    return decode(data, dtype).reshape(shape)
