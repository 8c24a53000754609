"""What the benchmarks share: pieces of work in turns, what each cost, and recordings made of the test set.

In go named pieces of work, out come their costs, one a round. All pieces are run once in every round, in an order that
moves on by one each time: whatever else the machine does then falls on all of them alike, and their ratios hold where
their milliseconds do not.
"""

import io
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from demo import testset
from demo.testset import Clip
from predictor import audio
from predictor.features import SAMPLE_RATE_HZ
from predictor.settings import available_cores

MAX_CLIP_SECONDS = 60.0
PAUSE_SAMPLES = SAMPLE_RATE_HZ // 3  # between the clips of a recording, as between sentences

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one piece of work took: CPU time of the whole process, all its threads, and time on the wall."""

    cpu_ms: float
    wall_ms: float


def measure(work: Callable[[], object]) -> Cost:
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    work()
    return Cost((time.process_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6)


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int, label: str) -> dict[str, list[Cost]]:
    """The costs of every case, one a round, after a round that is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    names = list(cases)
    with tqdm(total=(rounds + 1) * len(names), desc=label, unit="case", leave=False, disable=None) as progress:
        for number in range(rounds + 1):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                cost = measure(cases[name])
                if number:
                    costs[name].append(cost)
                progress.update()
    return costs


def cpu_ms(costs: Iterable[Cost]) -> float:
    return statistics.median(cost.cpu_ms for cost in costs)


def wall_ms(costs: Iterable[Cost]) -> float:
    return statistics.median(cost.wall_ms for cost in costs)


def clips(count: int) -> list[Clip]:
    """`count` clips spread over the whole test set: both languages, many speakers."""
    known = testset.read()
    return [known[number * len(known) // count] for number in range(min(count, len(known)))]


def file_of(clip: Clip) -> bytes:
    return (testset.DIRECTORY / clip.audio).read_bytes()


def samples_of(clip: Clip) -> Samples:
    return audio.decode(file_of(clip), MAX_CLIP_SECONDS).samples


def recording(seconds: float) -> Samples:
    """Samples [seconds * SAMPLE_RATE_HZ] of speech: clips of the test set with pauses between, from the start again
    where they do not suffice."""
    wanted = round(seconds * SAMPLE_RATE_HZ)
    parts: list[Samples] = []
    for clip in cycle(clips(100)):
        parts += [samples_of(clip), np.zeros(PAUSE_SAMPLES, np.float32)]
        wanted -= len(parts[-2]) + PAUSE_SAMPLES
        if wanted <= 0:
            return np.concatenate(parts)[: round(seconds * SAMPLE_RATE_HZ)]
    raise AssertionError  # a cycle has no end


def encoded(samples: Samples, container: str, subtype: str) -> bytes:
    """Samples as a file of one of libsndfile's containers."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format=container, subtype=subtype)
    return file.getvalue()


def console() -> Console:
    """Where the tables go, with what a reader must know of the machine already printed."""
    result = Console(highlight=False)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    result.print(f"{available_cores()} cores, load {load} before the start: read the ratios, not the milliseconds\n")
    return result
