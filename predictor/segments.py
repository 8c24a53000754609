"""A long Waveform to windows that the model can take, cut where it is quietest.

A cut is looked for in the last third of each window, in the middle of its quietest fifth of a second, which
in speech is a pause wherever there is one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.features import SAMPLE_RATE_HZ

_STEP_SAMPLES = SAMPLE_RATE_HZ // 100
_PAUSE_STEPS = 20


@dataclass(frozen=True, slots=True)
class Window:
    """Samples float32 [N] of a recording, starting `start_seconds` into it."""

    start_seconds: float
    samples: NDArray[np.float32]


def split(samples: NDArray[np.float32], max_seconds: float) -> list[Window]:
    """Cut samples [N] into consecutive windows of at most `max_seconds`; joined, they are the samples again."""
    limit = int(max_seconds * SAMPLE_RATE_HZ)
    windows, start = [], 0
    while len(samples) - start > limit:
        end = start + _quietest(samples[start : start + limit])
        windows.append(Window(start / SAMPLE_RATE_HZ, samples[start:end]))
        start = end
    windows.append(Window(start / SAMPLE_RATE_HZ, samples[start:]))
    return windows


def _quietest(samples: NDArray[np.float32]) -> int:
    """Where to cut samples [N]: an index in their last third."""
    first = len(samples) * 2 // 3
    steps = (len(samples) - first) // _STEP_SAMPLES
    if steps <= _PAUSE_STEPS:
        return len(samples)
    energy = np.square(samples[first : first + steps * _STEP_SAMPLES]).reshape(steps, _STEP_SAMPLES).sum(1)
    pauses = np.convolve(energy, np.ones(_PAUSE_STEPS), mode="valid")
    return first + (int(pauses.argmin()) + _PAUSE_STEPS // 2) * _STEP_SAMPLES
