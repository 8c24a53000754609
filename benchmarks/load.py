"""What callers wait at every load, and whether the server stays itself under too much of it.

In go clips of the test set, sent by more and more callers, each with one request at a time; out come p50 and p99 of the
wait, throughput, and refusals, in a table and a plot. Then the most of them for two minutes, with /health asked every
10 ms by a process of its own and the server's memory watched. A caller that is refused (503) waits as long as it is
told. It is a gate too: it exits with 1 for any other failure, a wrong text, a slow /health or memory that grows.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from clients import Connection, form, post
from health import sample
from measuring import clips, console, file_of
from rich.table import Table
from tqdm import tqdm

from demo.run import server
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

HEALTH_MS = 50.0
MOST_GROWTH_MB = 50.0  # of the second half of the long run over the first
OK, BUSY = 200, 503


@dataclass(slots=True)
class Load:
    """What callers met at one load; `memory_mb` was looked at once a second."""

    callers: int
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, slots=True)
class Question:
    request: bytes
    text: str
    audio_seconds: float


async def press(port: int, process: psutil.Process, questions: list[Question], callers: int, seconds: float) -> Load:
    """`callers` at once for so many seconds; what has been sent by then is waited for."""
    load = Load(callers)
    turn = itertools.cycle(questions)
    started = time.perf_counter()

    async def caller() -> None:
        connection = Connection(port)
        while time.perf_counter() - started < seconds:
            question = next(turn)
            sent = time.perf_counter()
            answer = await connection.send(question.request)
            if answer.status == BUSY and answer.retry_after_seconds:
                load.refused += 1
                await asyncio.sleep(min(answer.retry_after_seconds, seconds))
            elif answer.status != OK or answer.text != question.text:
                load.wrong.append(f"{answer.status}: {answer.body[:120]!r}")
            else:
                load.latencies_ms.append((time.perf_counter() - sent) * 1000)
                load.audio_seconds += question.audio_seconds
        connection.close()

    async def watch() -> None:
        while True:
            load.memory_mb.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(caller() for _ in range(callers)))
    watcher.cancel()
    load.seconds = time.perf_counter() - started
    return load


def questions(recognizer: Recognizer, count: int) -> list[Question]:
    """Requests with what must be answered: the Recognizer's own text."""
    found = []
    for clip in tqdm(clips(count), "expected texts", unit="clip", leave=False, disable=None):
        file = file_of(clip)
        request = post("/transcribe", *form(file, language=clip.language))
        found.append(Question(request, recognizer.transcribe(file, clip.language).text, clip.duration_seconds))
    return found


def plot(loads: list[Load], long: Load, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vani"
    from matplotlib import pyplot as plt

    figure, (waits, memory) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    callers = [load.callers for load in loads]
    for percent, style in ((99, "o-"), (50, "s-")):
        waits.plot(callers, [load.percentile(percent) for load in loads], style, label=f"p{percent} of the wait")
    waits.set(xlabel="callers at once", ylabel="ms", xscale="log", yscale="log", title="What a caller waits")
    waits.set_xticks(callers, [str(count) for count in callers])
    waits.minorticks_off()
    speed = waits.twinx()
    speed.plot(callers, [load.audio_seconds / load.seconds for load in loads], "^:", color="gray")
    speed.set(ylabel="audio seconds per second (dotted)", ylim=(0, None))
    waits.grid(alpha=0.3)
    waits.legend(loc="lower right")
    memory.plot(long.memory_mb)
    memory.set(
        xlabel="seconds", ylabel="MB resident", ylim=(0, 1.3 * max(long.memory_mb)), title=f"{long.callers} callers"
    )
    memory.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description="What callers wait, by load; and two minutes of too much.")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 200], help="the loads")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load [8]")
    parser.add_argument("--long", type=float, default=120.0, help="seconds of the largest load [120]")
    parser.add_argument("--clips", type=int, default=200, help="clips of the test set [200]")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("load.svg"), help="file [load.svg]")
    options = parser.parse_args()
    out = console()
    asked = questions(Recognizer.load(EMBEDDED_BUNDLE), options.clips)
    spawn = multiprocessing.get_context("spawn")
    with server(log_level="WARNING") as address, asyncio.Runner() as runner, ProcessPoolExecutor(1, spawn) as sampler:
        (process,) = (child for child in psutil.Process().children() if "predictor" in child.cmdline())
        port = urlsplit(address).port or 0
        runner.run(press(port, process, asked, 4, 2.0))  # warm
        loads = [
            runner.run(press(port, process, asked, callers, options.seconds))
            for callers in tqdm(options.callers, "loads", unit="load", leave=False, disable=None)
        ]
        health = sampler.submit(sample, address, options.long)
        long = runner.run(press(port, process, asked, max(options.callers), options.long))
        probes = health.result()
    table = Table("callers", "seconds", "answered", "p50 ms", "p99 ms", "audio s per s", "503", "wrong", box=None)
    for load in [*loads, long]:
        row = (load.percentile(50), load.percentile(99), load.audio_seconds / load.seconds)
        counts = (str(load.refused), str(len(load.wrong)))
        answered = str(len(load.latencies_ms))
        table.add_row(str(load.callers), f"{load.seconds:.0f}", answered, *(f"{n:.0f}" for n in row), *counts)
    out.print(table)
    half = len(long.memory_mb) // 2
    growth = max(long.memory_mb[half:]) - max(long.memory_mb[:half])
    p99 = statistics.quantiles(probes, n=100, method="inclusive")[98]
    wrong = [problem for load in [*loads, long] for problem in load.wrong]
    out.print(f"\n/health under {long.callers} callers: p99 {p99:.1f} ms of {len(probes)}, max {max(probes):.1f} ms")
    out.print(f"memory: {long.memory_mb[0]:.0f} MB, at most {max(long.memory_mb):.0f}; second half {growth:+.1f} MB")
    plot(loads, long, options.plot)
    out.print(f"plot: {options.plot}")
    kept = not wrong and p99 < HEALTH_MS and growth < MOST_GROWTH_MB
    out.print("within the limits" if kept else f"NOT within the limits: {wrong[:3]}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
