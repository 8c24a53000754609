"""Does the server answer its health probe while it is saturated? Exit status 1 if p99 is 50 ms or more.

In go recordings of minutes, posted by several clients at once, as multipart and as V2 JSON in turn; out come the
latencies of GET /health, asked every 10 ms on one connection that is kept open, by a process of its own, with the same
server idle and under load in turns. Health because a kubelet restarts a pod whose probe is late, and because whatever
holds the event loop or the interpreter's lock shows there first. An answer that took 60 ms also counts for the five
questions that were due meanwhile (50, 40, ... ms): a probe comes when it comes, and would have waited as long.
"""

import argparse
import base64
import http.client
import itertools
import json
import multiprocessing
import statistics
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from measuring import console, encoded, recording
from rich.table import Table
from tqdm import tqdm

from demo.run import MODEL, server

EVERY_SECONDS = 0.01
LIMIT_MS = 50.0
TIMEOUT_SECONDS = 600.0


@dataclass(slots=True)
class Watched:
    """What one state of the server gave: latencies of /health, audio transcribed meanwhile and the time for it."""

    latencies_ms: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]


def sample(address: str, seconds: float) -> list[float]:
    """Latencies of /health in ms, one for every 10 ms of `seconds`."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=TIMEOUT_SECONDS)
    latencies: list[float] = []
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        answered = time.perf_counter()
        if response.status != http.client.OK:
            raise SystemExit(f"/health answered {response.status}")
        latencies.append((answered - sent) * 1000)
        due = max(due + EVERY_SECONDS, sent)
        while due < answered:
            latencies.append((answered - due) * 1000)
            due += EVERY_SECONDS
    return latencies


def bodies(address: str, minutes: list[float], protocol: str) -> list[tuple[httpx.Request, float]]:
    """A request for each recording, made once and sent many times, and its audio seconds."""
    requests = []
    for length in minutes:
        wav = encoded(recording(length * 60), "WAV", "PCM_16")
        if protocol != "json":
            form = httpx.Request("POST", f"{address}/transcribe", files={"file": ("long.wav", wav, "audio/wav")})
            form.read()
            requests.append((form, length * 60))
        if protocol != "multipart":
            audio = {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(wav).decode()]}
            content = json.dumps({"inputs": [audio], "outputs": [{"name": "text"}]})
            headers = {"content-type": "application/json"}
            url = f"{address}/v2/models/{MODEL}/infer"
            requests.append((httpx.Request("POST", url, content=content, headers=headers), length * 60))
    return requests


def post(requests: list[tuple[httpx.Request, float]], first: int, stop: threading.Event, progress: tqdm) -> float:
    """Send the requests one after the other, beginning with `first`, until told to stop; the audio seconds done."""
    done = 0.0
    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for request, seconds in itertools.islice(itertools.cycle(requests), first, None):
            if stop.is_set():
                return done
            client.send(request).raise_for_status()
            done += seconds
            progress.update(seconds)
    return done


def watch(address: str, requests: list[tuple[httpx.Request, float]], options: argparse.Namespace) -> dict[str, Watched]:
    """Idle and loaded in turns: the load is let go, and answered to its end, before the server counts as idle."""
    idle, loaded = Watched(), Watched()
    part = options.seconds / options.rounds
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn) as sampler,
        ThreadPoolExecutor(options.clients) as clients,
        tqdm(desc="transcribed", unit="s", leave=False, disable=None) as progress,
    ):
        sampler.submit(sample, address, EVERY_SECONDS).result()  # the process is up, and its imports are done
        for _ in range(options.rounds):
            idle.latencies_ms += sampler.submit(sample, address, part).result()
            stop, started = threading.Event(), time.perf_counter()
            posting = [clients.submit(post, requests, n, stop, progress) for n in range(options.clients)]
            try:
                loaded.latencies_ms += sampler.submit(sample, address, part).result()
            finally:
                stop.set()
            loaded.audio_seconds += sum(client.result() for client in posting)
            loaded.wall_seconds += time.perf_counter() - started
    return {"idle": idle, "saturated": loaded}


def main() -> int:
    parser = argparse.ArgumentParser(description="The latency of /health, with the server idle and saturated.")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to sample each state [20]")
    parser.add_argument("--rounds", type=int, default=2, help="turns in which the time is spent [2]")
    parser.add_argument("--clients", type=int, default=8, help="requests in flight [8]")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 10.0], help="recordings' lengths [5 10]")
    parser.add_argument("--protocol", choices=["both", "json", "multipart"], default="both", help="of the load [both]")
    options = parser.parse_args()
    out = console()
    with server(max_pending_audio_seconds=36_000) as address:
        states = watch(address, bodies(address, options.minutes, options.protocol), options)
    table = Table("server", "samples", "p50 ms", "p95 ms", "p99 ms", "max ms", "audio s per s", box=None)
    for name, state in states.items():
        latencies = [*(state.percentile(percent) for percent in (50, 95, 99)), max(state.latencies_ms)]
        speed = f"{state.audio_seconds / state.wall_seconds:.0f}" if state.wall_seconds else ""
        table.add_row(name, str(len(state.latencies_ms)), *(f"{latency:.1f}" for latency in latencies), speed)
    out.print(table)
    kept = states["saturated"].percentile(99) < LIMIT_MS
    out.print(f"\np99 under load is {'below' if kept else 'NOT below'} {LIMIT_MS:g} ms")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
