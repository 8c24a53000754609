"""A long Waveform to windows that the model can take, cut in pauses; where nobody pauses, windows overlap.

A pause is a stretch that stays about as quiet as the quietest moment nearby, while speech nearby is clearly louder:
both are levels of the neighbourhood, so a noisy recording has pauses as a quiet one has. Every long pause is cut, a
short one only where the limit asks for it. The cut lies shortly before the next word, not in the middle, and what is
longer than both sides need is a window of its own: models learn from recordings with little silence at their ends, and
more of it costs them words (docs/decisions/0006-windows.md).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.features import SAMPLE_RATE_HZ

OVERLAP_SECONDS = 2.0  # holds the longest words whole, twice
MIN_PAUSE_SECONDS = 0.25  # the closure of a long plosive lasts up to 0.2 s

_STEP_SAMPLES = SAMPLE_RATE_HZ // 100
_STEPS_PER_SECOND = SAMPLE_RATE_HZ // _STEP_SAMPLES
_PAUSE_STEPS = int(MIN_PAUSE_SECONDS * _STEPS_PER_SECOND)
_LONG_PAUSE_STEPS = 50  # between sentences
_LEAD_STEPS = 20  # of silence before a window's first word
_TAIL_STEPS = 40  # of silence after its last, if what is left of the pause makes a window of its own
_LEAST_STEPS = 100  # a long pause ends no window that is shorter, so that no word or two stand alone
_NEARBY_STEPS = 3_000
_QUIET_STEPS = 20  # how long the quietest moment lasts
_LOUD_STEPS = 30  # speech is as loud as the loudest 0.3 s: a click is not speech
_SEARCH_SAMPLES = SAMPLE_RATE_HZ // 2  # each edge of an overlap is moved by at most this, to a quiet moment

# The level of a step is that of the differences of samples this far apart, in decibels: a constant has none, hum hardly
# any, white noise little beside speech. A distance of 1 finds no pause in white noise 10 dB below speech; 4 finds them.
_LAG_SAMPLES = 4
_SMOOTHED_STEPS = 5
_BLOCK_STEPS = 400
_SILENCE = -100.0  # less is digital silence
_RANGE = 50.0  # whatever is further below speech is equally quiet
_CONTRAST = 12.0  # of speech to a pause: weak syllables come as close to loud ones where nobody pauses
_MARGIN = (2.0, 10.0)  # how far a pause may rise above the quietest moment: in steady noise, in a clean recording
_MARGIN_SHARE = 0.2  # of the contrast, within these two

Samples = NDArray[np.float32]
Levels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """Samples float32 [N] of a recording, starting `start_seconds` into it.

    The first `overlap_seconds` are the end of the window before as well: 0 where the two were cut in a pause.
    """

    start_seconds: float
    samples: Samples
    overlap_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Pause:
    """The quiet steps from `first` up to, not including, `last`."""

    first: int
    last: int


def split(samples: Samples, max_seconds: float) -> list[Window]:
    """Cut samples [N] into windows of at most `max_seconds`, in order, which together hold every sample."""
    limit, total = int(max_seconds * SAMPLE_RATE_HZ), len(samples)
    levels = _levels(samples)
    windows: list[Window] = []
    start = heard = 0
    while True:
        end, following = _cut(levels, start, limit, total)
        overlap_seconds = (heard - start) / SAMPLE_RATE_HZ
        windows.append(Window(start / SAMPLE_RATE_HZ, samples[start:end], overlap_seconds))
        if end == total:
            return windows
        start, heard = following, end


def pause_end(samples: Samples, min_pause_seconds: float) -> int | None:
    """Where to cut a buffer that grows: the middle of the last pause of at least `min_pause_seconds` in samples [N].

    None where there is none, or nothing was said before it. The pause may last until the end of the buffer, so that a
    sentence can be cut off once its speaker has been silent for so long. Pauses shorter than MIN_PAUSE_SECONDS are not
    told from plosives: to ask for less is to ask for that.
    """
    least = max(_PAUSE_STEPS, round(min_pause_seconds * _STEPS_PER_SECOND))
    for pause in reversed(_pauses(_levels(samples), least)):
        if pause.first > 0:
            return (pause.first + pause.last) // 2 * _STEP_SAMPLES
    return None


def _levels(samples: Samples) -> Levels:
    """The level of each whole step in decibels, [N // step]. Block by block, which fits a core's cache."""
    steps = len(samples) // _STEP_SAMPLES
    energy = np.zeros(steps, np.float32)
    for first in range(0, steps, _BLOCK_STEPS):
        last = min(first + _BLOCK_STEPS, steps)
        block = samples[max(0, first * _STEP_SAMPLES - _LAG_SAMPLES) : last * _STEP_SAMPLES]
        changes = np.zeros((last - first, _STEP_SAMPLES), np.float32)
        changes.reshape(-1)[-(len(block) - _LAG_SAMPLES) :] = block[_LAG_SAMPLES:] - block[:-_LAG_SAMPLES]
        np.einsum("ij,ij->i", changes, changes, out=energy[first:last])
    padded = np.pad(energy.astype(np.float64), _SMOOTHED_STEPS // 2, mode="edge") if steps else np.empty(0)
    mean = _averaged(padded, _SMOOTHED_STEPS) / _STEP_SAMPLES
    return np.asarray(10 * np.log10(np.maximum(mean, 10 ** (_SILENCE / 10))))


def _averaged(values: Levels, width: int) -> Levels:
    """Means of `width` values in a row, [len - width + 1]."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    return np.asarray((sums[width:] - sums[:-width]) / width)


def _pauses(levels: Levels, least_steps: int) -> list[_Pause]:
    """The pauses of at least `least_steps`, in order."""
    if len(levels) <= max(_QUIET_STEPS, _LOUD_STEPS):
        return []
    speech = np.partition(levels, -_LOUD_STEPS)[-_LOUD_STEPS]
    clipped = np.maximum(levels, speech - _RANGE)
    quiet = _averaged(clipped, _QUIET_STEPS).min()
    if speech - quiet < _CONTRAST:
        return []
    margin = np.clip(_MARGIN_SHARE * (speech - quiet), *_MARGIN)
    edges = np.flatnonzero(np.diff(clipped < quiet + margin, prepend=False, append=False)).tolist()
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [_Pause(first, last) for first, last in runs if last - first >= least_steps]


def _cut(levels: Levels, start: int, limit: int, total: int) -> tuple[int, int]:
    """The end of the window that begins at sample `start`, and where the next one begins."""
    first, reach = start // _STEP_SAMPLES, limit // _STEP_SAMPLES
    nearby = max(0, first - _NEARBY_STEPS // 3)
    found = _pauses(levels[nearby : first + max(reach, _NEARBY_STEPS * 2 // 3)], _PAUSE_STEPS)
    offset, steps = first - nearby, len(levels) - first
    pauses = [_Pause(max(p.first - offset, 0), p.last - offset) for p in found if 0 < p.last - offset < steps]
    fits = total - start <= limit
    at = _first_long(pauses, reach) or (0 if fits else _longest(pauses, reach))
    if at:
        end = (first + at) * _STEP_SAMPLES
        return end, end
    return (total, total) if fits else _overlapping(levels, start, limit)


def _place(pause: _Pause, reach: int) -> int:
    """The step to cut at in a pause, counted from the window's start; 0 where the window cannot end in it."""
    at = max(pause.last - _LEAD_STEPS, (pause.first + pause.last) // 2)
    if pause.first and pause.last - pause.first >= _TAIL_STEPS + _LONG_PAUSE_STEPS:
        at = pause.first + _TAIL_STEPS
    at = min(at, reach)
    return at if at - pause.first >= _PAUSE_STEPS // 2 else 0


def _first_long(pauses: list[_Pause], reach: int) -> int:
    least = min(_LEAST_STEPS, reach // 2)
    for pause in pauses:
        at = _place(pause, reach)
        if pause.last - pause.first >= _LONG_PAUSE_STEPS and (at >= least or (at and not pause.first)):
            return at
    return 0


def _longest(pauses: list[_Pause], reach: int) -> int:
    """Of the pauses in the later half of the window, or else of all, the longest."""
    places = [(pause.last - pause.first, at) for pause in pauses if (at := _place(pause, reach))]
    return max([place for place in places if place[1] >= reach // 2] or places, default=(0, 0))[1]


def _overlapping(levels: Levels, start: int, limit: int) -> tuple[int, int]:
    """The end of a window in which nobody pauses and the start of the next, each at the quietest moment near it."""
    search = min(_SEARCH_SAMPLES, limit // 8)
    overlap = min(int(OVERLAP_SECONDS * SAMPLE_RATE_HZ), limit // 2 - search)
    end = _quietest(levels, start + limit - search, start + limit)
    return end, _quietest(levels, end - overlap - search, end - overlap)


def _quietest(levels: Levels, earliest: int, latest: int) -> int:
    """The start of the quietest step between two samples, or `latest` where no step starts there."""
    first = -(-earliest // _STEP_SAMPLES)
    here = levels[first : latest // _STEP_SAMPLES + 1]
    return (first + int(here.argmin())) * _STEP_SAMPLES if len(here) else latest
