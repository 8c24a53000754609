"""A tensor that is still in its file, and what the bytes of each type are."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Permanent

# By the name that safetensors and torch agree on. bfloat16 is the upper half of a float32, which NumPy does not know.
BFLOAT16 = "bfloat16"
_STORED = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", BFLOAT16: "<u2",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1", "bool": "u1",
}  # fmt: skip


class Tensor(NamedTuple):
    """`dtype` is the stored one, "float32" for instance; `read` gives the values, every float as float32.

    A tuple, because the pickle that it comes from can set the attributes of everything else.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[np.generic]]


class Storage(NamedTuple):
    """A storage that is still in its file: `length` values in the member of a zip file, of which tensors are views."""

    member: str
    dtype: str
    length: int


def item_bytes(dtype: str) -> int:
    """The bytes of one value. Raises Permanent for a type that no weights are of."""
    if dtype not in _STORED:
        raise Permanent(f"the checkpoint has a tensor of type {dtype}, which cannot be read")
    return np.dtype(_STORED[dtype]).itemsize


def decode(data: bytes, dtype: str) -> NDArray[np.generic]:
    """Values [n] of raw little-endian bytes: float32 for every float, the stored type for the others."""
    values = np.frombuffer(data, _STORED[dtype])
    if dtype == BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("float"):
        return values.astype(np.float32, copy=False)
    return values.astype(bool) if dtype == "bool" else values
