"""What the engine costs, and what each way to arrange its calls does to that cost.

In go clips of the test set, already made to features; out come two tables: CPU time for 5 s of audio of every way to
call the graph, and audio seconds a second of every way to fill the cores. CPU time because a core is what one pays for
and because it repeats where wall time does not; for 5 s because clips differ in length. All ways are run in turns, in
one process, so that the ratios of a table can be believed on a machine that does other things too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from measuring import Cost, clips, console, cpu_ms, in_turns, samples_of, wall_ms
from numpy.typing import NDArray
from rich.table import Table

from predictor import bundle, features
from predictor.bundle import Bundle
from predictor.engine.onnx import OnnxEngine
from predictor.features import FRAME_SECONDS, whisper
from predictor.settings import EMBEDDED_BUNDLE, available_cores

PER_SECONDS = 5.0
PADDED_FRAMES = 3_000  # the 30 s that Whisper's own front end makes of everything
BATCH = 8

Frames = NDArray[np.float32]
Run = Callable[[Sequence[Frames]], object]


def as_served(engine: OnnxEngine, utterances: Sequence[Frames]) -> None:
    """One call for each utterance at its own length: what predictor/ does."""
    for frames in utterances:
        engine.infer(features.pad([frames]))


def padded(engine: OnnxEngine, utterances: Sequence[Frames]) -> None:
    """Every utterance with silence up to 30 s."""
    for frames in utterances:
        whole = np.zeros((1, len(frames), PADDED_FRAMES), np.float32)
        whole[0, :, : frames.shape[1]] = frames
        engine.infer(features.Batch(whole, np.array([PADDED_FRAMES])))


class RawGraph:
    """The same graph called directly, with what OnnxEngine decides left open: threads for a call, rows in a call."""

    def __init__(self, model: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # as in OnnxEngine
        options.log_severity_level = 3
        self._names = model.graph
        self._session = onnxruntime.InferenceSession(
            str(model.path(model.graph.file)), options, providers=["CPUExecutionProvider"]
        )

    def run(self, rows: int, utterances: Sequence[Frames]) -> None:
        """`rows` utterances in a call, in the order given, padded to the longest of them."""
        for first in range(0, len(utterances), rows):
            batch = features.pad(utterances[first : first + rows])
            inputs = {self._names.features: batch.frames, self._names.lengths: batch.lengths}
            self._session.run([self._names.log_probs], inputs)


def in_streams(streams: int, run: Run, utterances: Sequence[Frames]) -> None:
    """`streams` threads that take the utterances one by one, the longest first."""
    longest_first = sorted(utterances, key=lambda frames: -frames.shape[1])
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda frames: run([frames]), longest_first))


def seconds_of(utterances: Sequence[Frames]) -> float:
    return sum(frames.shape[1] for frames in utterances) * FRAME_SECONDS


def named(model: Bundle) -> str:
    """By its directory too: two precisions of one model may have all else in common."""
    return f"{model.directory.name} ({model.graph.precision})"


def cost_cases(models: Sequence[Bundle], utterances: Sequence[Frames]) -> dict[str, Callable[[], object]]:
    """The first one is what the others are compared with."""
    first, by_length = models[0], sorted(utterances, key=lambda frames: frames.shape[1])
    engine, two_threads, one_thread = OnnxEngine(first), RawGraph(first, 2), RawGraph(first, 1)
    cases: dict[str, Callable[[], object]] = {
        f"{named(first)}, as served": partial(as_served, engine, utterances),
        "padded to 30 s": partial(padded, engine, utterances),
        "two threads a call": partial(two_threads.run, 1, utterances),
        f"batches of {BATCH}, sorted by length": partial(one_thread.run, BATCH, by_length),
        f"batches of {BATCH}, as they come": partial(one_thread.run, BATCH, utterances),
    }
    return cases | {f"{named(m)}, as served": partial(as_served, OnnxEngine(m), utterances) for m in models[1:]}


def throughput_cases(model: Bundle, utterances: Sequence[Frames]) -> dict[str, Callable[[], object]]:
    cores = available_cores()
    by_length = sorted(utterances, key=lambda frames: frames.shape[1])
    one_by_one = partial(as_served, OnnxEngine(model))
    all_cores = RawGraph(model, cores)
    streams = sorted({1, cores, 2 * cores})
    cases: dict[str, Callable[[], object]] = {
        f"{n} streams, a thread and an utterance each": partial(in_streams, n, one_by_one, utterances) for n in streams
    }
    cases[f"1 stream, {cores} threads a call"] = partial(all_cores.run, 1, utterances)
    cases[f"1 stream, {cores} threads, batches of {BATCH} sorted"] = partial(all_cores.run, BATCH, by_length)
    return cases


def cost_table(costs: dict[str, list[Cost]], seconds: float) -> Table:
    table = Table("way", "CPU ms for 5 s", "ratio", "wall ms for 5 s", title="cost", title_justify="left", box=None)
    scale = PER_SECONDS / seconds
    first = cpu_ms(next(iter(costs.values())))
    for name, samples in costs.items():
        cpu, wall = cpu_ms(samples), wall_ms(samples)
        table.add_row(name, f"{cpu * scale:.2f}", f"{cpu / first:.2f}", f"{wall * scale:.2f}")
    return table


def throughput_table(costs: dict[str, list[Cost]], seconds: float) -> Table:
    table = Table("way", "audio s per s", "ratio", title="throughput", title_justify="left", box=None)
    first = wall_ms(next(iter(costs.values())))
    for name, samples in costs.items():
        table.add_row(name, f"{seconds / wall_ms(samples) * 1000:.0f}", f"{first / wall_ms(samples):.2f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="What the engine costs, and how to arrange its calls.")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE, help="model directory [the embedded one]")
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="DIR", help="one more, to compare")
    parser.add_argument("--clips", type=int, default=32, help="clips of the test set in a round [32]")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median is shown [9]")
    options = parser.parse_args()
    out = console()
    models = [bundle.read(directory) for directory in (options.bundle, *options.also)]
    mel_bins = models[0].front_end.mel_bins
    utterances = [whisper.log_mel(samples_of(clip), mel_bins) for clip in clips(options.clips)]
    seconds = seconds_of(utterances)
    out.print(f"{len(utterances)} clips, {seconds:.0f} s of audio, median of {options.rounds} rounds\n")
    costs = in_turns(cost_cases(models, utterances), options.rounds, "cost")
    out.print(cost_table(costs, seconds), "")
    costs = in_turns(throughput_cases(models[0], utterances), options.rounds, "throughput")
    out.print(throughput_table(costs, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
