"""What networks must compute, and how fast this machine multiplies: about the least time that an engine could take.

Products of fp32 and int8 matrices are timed as pieces of work like any other, in the same rounds. Attention and the
convolutions are fp32 in every engine here, and what is left (norms, activations, copies) is counted as nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

Precision = Literal["fp32", "int8"]
ROWS, INNER, COLUMNS = 512, 512, 2048  # the feed-forward product of a base encoder over 10 s
REPEATS = 8
POSITIONS = 1_500  # of 30 s
_FRAMES_A_SECOND, _CONFORMER_FRAMES_A_SECOND = 50, 12.5


@dataclass(frozen=True, slots=True)
class Size:
    """An encoder's shape; heads are 64 wide, feed-forward layers four times the width."""

    name: str
    layers: int
    width: int
    mel_bins: int = 80


@dataclass(frozen=True, slots=True)
class Work:
    """Operations (two for a multiplication and an addition): of matrices with weights, and the rest."""

    linear: float
    other: float


SIZES = {size.name: size for size in (Size("tiny", 4, 384), Size("base", 6, 512), Size("small", 12, 768))}
CONFORMER, CONFORMER_TOKENS = Size("conformer", 24, 1024), 5_633


def multiply_fp32() -> None:
    left, right = _fp32
    for _ in range(REPEATS):
        torch.mm(left, right)


def multiply_int8() -> None:
    left, right = _int8
    for _ in range(REPEATS):
        torch._int_mm(left, right)  # noqa: SLF001  (there is no public one)


PEAKS = {"fp32": multiply_fp32, "int8": multiply_int8}


def giga_a_second(cpu_ms: float) -> float:
    """Billions of operations a second of one core, where a PEAKS function took so long."""
    return 2 * ROWS * INNER * COLUMNS * REPEATS / cpu_ms / 1e6


def whisper(size: Size, tokens: int, seconds: float) -> Work:
    """Encoder and a head of so many tokens: 12 d^2 a layer and frame, attention, and the two convolutions."""
    frames, width = min(POSITIONS, round(seconds * _FRAMES_A_SECOND)), size.width
    linear = 2 * frames * width * (size.layers * 12 * width + width + tokens)
    attention = 4 * frames * frames * width * size.layers
    return Work(linear, attention + 2 * 3 * frames * width * (2 * size.mel_bins + width))


def conformer(seconds: float) -> Work:
    """Encoder and CTC decoder: 25 d^2 a layer and frame (two feed-forwards of 8, attention of 4 and 2 for relative
    positions, convolution of 3), and attention with positions. Subsampling is left out: it is a hundredth."""
    frames, width = seconds * _CONFORMER_FRAMES_A_SECOND, CONFORMER.width
    linear = 2 * frames * width * (CONFORMER.layers * 25 * width + CONFORMER_TOKENS)
    return Work(linear, 8 * frames * frames * width * CONFORMER.layers)


def in_windows(work: Callable[[float], Work], longest: float, seconds: float) -> Work:
    """The work of equal windows of at most `longest` seconds."""
    count = ceil(seconds / longest)
    each = work(seconds / count)
    return Work(count * each.linear, count * each.other)


def least_ms(work: Work, precision: Precision, peaks: dict[str, float]) -> float:
    """Core-ms at `peaks` of this machine, in billions of operations a second."""
    return (work.linear / peaks[precision] + work.other / peaks["fp32"]) / 1e6


_generator = torch.Generator().manual_seed(0)
_fp32 = tuple(torch.randn(shape, generator=_generator) for shape in ((ROWS, INNER), (INNER, COLUMNS)))
_int8 = tuple((matrix * 30).clamp(-127, 127).to(torch.int8) for matrix in _fp32)
