"""What a server takes away: throughput at saturation beside the Recognizer's own, and the latency that it adds.

In go clips of the test set, transcribed by as many threads as there are cores without a server, and by clients of a
server on the same cores, in turns; out come seconds of audio per second and their ratio. Then one caller with one 10 s
WAV at a time, by the server and without it, in turns. Every text must be the same. It is a gate too: it exits with 1
where the throughput is below 90 % or the server adds 5 ms or more.
"""

import argparse
import asyncio
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from clients import Connection, form, post
from measuring import clips, console, encoded, file_of, recording
from rich.table import Table
from tqdm import tqdm

from demo.run import server
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE, available_cores

LEAST_SHARE = 0.9
MOST_ADDED_MS = 5.0
CALLERS_PER_CORE = 4


def alone(recognizer: Recognizer, files: list[bytes]) -> list[str]:
    """Every file, on every core, without a server."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return [result.text for result in pool.map(recognizer.transcribe, files)]


async def served(connections: list[Connection], requests: list[bytes]) -> list[str]:
    """Every request, as fast as the server takes them from so many callers."""
    texts = [""] * len(requests)
    todo = iter(range(len(requests)))

    async def caller(connection: Connection) -> None:
        for number in todo:
            answer = await connection.send(requests[number])
            if answer.status != 200:  # noqa: PLR2004
                raise SystemExit(f"the server answered {answer.status}: {answer.body[:200]!r}")
            texts[number] = answer.text

    await asyncio.gather(*(caller(connection) for connection in connections))
    return texts


def timed_ms(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return (time.perf_counter() - started) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description="Throughput and latency of the server beside the Recognizer's own.")
    parser.add_argument("--clips", type=int, default=200, help="clips of the test set in a round [200]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is shown [5]")
    parser.add_argument("--calls", type=int, default=200, help="calls of a lone caller [200]")
    options = parser.parse_args()
    out = console()
    chosen = clips(options.clips)
    files = [file_of(clip) for clip in chosen]
    seconds = sum(clip.duration_seconds for clip in chosen)
    wav = encoded(recording(10.0), "WAV", "PCM_16")
    recognizer = Recognizer.load(EMBEDDED_BUNDLE)
    own, over_http, lone, lone_served = [], [], [], []
    with server(log_level="WARNING") as address, asyncio.Runner() as runner:
        port = urlsplit(address).port or 0
        connections = [Connection(port) for _ in range(CALLERS_PER_CORE * available_cores())]
        requests = [post("/transcribe", *form(file)) for file in files]
        request = post("/transcribe", *form(wav))
        expected = alone(recognizer, files)
        for number in tqdm(range(options.rounds + 1), "throughput", unit="round", leave=False, disable=None):
            started = time.perf_counter()
            alone(recognizer, files)
            between = time.perf_counter()
            texts = runner.run(served(connections, requests))
            ended = time.perf_counter()
            if texts != expected:
                raise SystemExit("the server's texts are not the Recognizer's")
            if number:
                own.append(seconds / (between - started))
                over_http.append(seconds / (ended - between))
        for _ in tqdm(range(options.calls), "latency", unit="call", leave=False, disable=None):
            lone.append(timed_ms(lambda: recognizer.transcribe(wav)))
            lone_served.append(timed_ms(lambda: runner.run(connections[0].send(request))))
    table = Table("", "no server", "served", "ratio or difference", box=None)
    share = statistics.median(over_http) / statistics.median(own)
    added = statistics.median(lone_served) - statistics.median(lone)
    speeds = (f"{statistics.median(speed):.0f}" for speed in (own, over_http))
    table.add_row(f"audio seconds per second, {len(files)} clips", *speeds, f"{share:.1%}")
    latencies = (f"{statistics.median(latency):.1f}" for latency in (lone, lone_served))
    table.add_row("ms for a 10 s WAV, one caller, p50", *latencies, f"{added:+.1f}")
    out.print(table)
    kept = share >= LEAST_SHARE and added < MOST_ADDED_MS
    out.print(f"\n{'within' if kept else 'NOT within'} the limits: {LEAST_SHARE:.0%} and {MOST_ADDED_MS:g} ms")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
