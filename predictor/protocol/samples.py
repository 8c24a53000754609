"""The samples of a V2 tensor to an array: from raw bytes as they are, or from JSON's and gRPC's numbers, in pieces."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.errors import BadRequest
from predictor.protocol.payload import Numbers

DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT16": np.dtype("<i2"), "UINT8": np.dtype("u1")}

_MAX_NUMBERS = 1 << 23  # written as text; 8 minutes at 16 kHz. More is sent as bytes, at a hundredth of the cost
_MAX_SAMPLES = 1 << 40  # claimed by a shape: no body has so many, and products of them are still quick
_PIECE = 1 << 14  # numbers converted at once


def read_samples(
    datatype: str, shape: Sequence[int], values: Sequence[Any] | Numbers | None, raw: bytes | memoryview | None
) -> NDArray[Any]:
    """Samples [product of the shape, at least 1] of a DTYPES' name; a view of `raw` where there is one."""
    dtype = DTYPES[datatype]
    if max(shape) > _MAX_SAMPLES:
        raise BadRequest(f"input 'audio' has a shape of more than {_MAX_SAMPLES} samples")
    if raw is not None:
        found, rest = divmod(len(raw), dtype.itemsize)
        if rest:
            raise BadRequest(f"input 'audio' has {len(raw)} bytes; {datatype} takes {dtype.itemsize} for each sample")
        samples = np.frombuffer(raw, dtype) if raw else np.empty(0, dtype)
    else:
        samples = _joined(values, dtype)
        found = len(samples)
    if not found or found != prod(shape):
        raise BadRequest(f"input 'audio' holds {found} samples and has the shape {list(shape)}; the two must agree")
    return samples


def _joined(values: Sequence[Any] | Numbers | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    arrays, count = [], 0
    for piece in _pieces(values):
        array = _converted(piece, dtype)
        arrays.append(array)
        count += len(array)
        if count > _MAX_NUMBERS:
            raise BadRequest(
                f"input 'audio' has more than {_MAX_NUMBERS} samples written as numbers; send them as bytes"
            )
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


def _pieces(values: object) -> Iterator[Any]:
    """Lists of scalars, out of lists nested as deep as a client likes."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, Numbers):
            yield from value.pieces()
        elif not isinstance(value, Sequence) or isinstance(value, str | bytes | memoryview):
            raise _not_numbers()
        elif value and isinstance(value[0], list | Numbers):
            pending.extend(reversed(value))
        else:
            yield from (value[at : at + _PIECE] for at in range(0, len(value), _PIECE))


def _converted(piece: Sequence[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        array = np.array(piece)
    except (ValueError, OverflowError) as error:  # of lists of different lengths
        raise _not_numbers() from error
    if array.ndim != 1 or array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise _not_numbers()
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise BadRequest(f"input 'audio' has samples beyond {np.iinfo(dtype).min} to {np.iinfo(dtype).max}")
    with np.errstate(over="ignore"):  # an infinite sample is refused as audio
        return array.astype(dtype)


def _not_numbers() -> BadRequest:
    return BadRequest("input 'audio' must hold numbers of its datatype, in a list or in lists of the same length")
