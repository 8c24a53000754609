"""What a protocol adds to a transcription: the same file by every way in, beside the Recognizer called in process.

In goes one recording; out come the median latency of a single caller and the CPU time that the server spent on a
request, with their ratios to the call without a server. The ways take turns by bursts: the kernel counts a process's
CPU time in hundredths of a second, so only a burst has enough of it to be told. Every answer must be the same text.
"""

import argparse
import base64
import json
import statistics
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import psutil
from measuring import console, encoded, recording
from rich.table import Table
from tqdm import tqdm

from demo.run import MODEL, server
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

IN_PROCESS = "Recognizer, no server"
Call = Callable[[], str]


@dataclass(slots=True)
class Spent:
    """Of one way: the latency of every call, and the CPU time of one call as each burst had it."""

    latencies_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def calls(client: httpx.Client, recognizer: Recognizer, file: bytes) -> dict[str, Call]:
    """Every way to have `file` transcribed. Bodies are made beforehand: what a caller pays is not measured."""
    infer, predict = f"/v2/models/{MODEL}/infer", f"/v1/models/{MODEL}:predict"
    tensor = {"name": "audio", "datatype": "BYTES", "shape": [1]}
    output = [{"name": "text"}]
    text_body = json.dumps({"inputs": [tensor | {"data": [base64.b64encode(file).decode()]}], "outputs": output})
    element = struct.pack("<I", len(file)) + file
    head = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": len(element)}}], "outputs": output}
    ).encode()
    binary = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    form = client.build_request("POST", "/transcribe", files={"file": ("clip.wav", file, "audio/wav")})
    form.read()

    def ask(path: str, content: str | bytes, headers: dict[str, str]) -> dict[str, list[dict[str, list[str]]]]:
        return client.post(path, content=content, headers=headers).raise_for_status().json()

    json_type, audio_type = {"content-type": "application/json"}, {"content-type": "audio/wav"}
    return {
        IN_PROCESS: lambda: recognizer.transcribe(file).text,
        "V2, binary tensor": lambda: ask(infer, head + element, binary)["outputs"][0]["data"][0],
        "V2, JSON with base64": lambda: ask(infer, text_body, json_type)["outputs"][0]["data"][0],
        "V1, the file as the body": lambda: str(ask(predict, file, audio_type)["predictions"][0]["text"]),
        "multipart /transcribe": lambda: str(client.send(form).raise_for_status().json()["text"]),
        "GET /health": lambda: client.get("/health").raise_for_status().text and "",
    }


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def burst(call: Call, count: int, process: psutil.Process, spent: Spent | None) -> str:
    """`count` calls one after the other; the last answer."""
    answer, latencies = "", []
    before = cpu_seconds(process)
    for _ in range(count):
        started = time.perf_counter()
        answer = call()
        latencies.append((time.perf_counter() - started) * 1000)
    if spent is not None:
        spent.latencies_ms += latencies
        spent.cpu_ms.append((cpu_seconds(process) - before) / count * 1000)
    return answer


def in_bursts(ways: dict[str, Call], serving: psutil.Process, rounds: int, count: int) -> dict[str, Spent]:
    """The ways in turns, after a round that is not counted but in which all must understand the same."""
    result = {name: Spent() for name in ways}
    here, names = psutil.Process(), list(ways)
    answers = set()
    with tqdm(total=(rounds + 1) * len(names), desc="protocols", unit="burst", leave=False, disable=None) as progress:
        for number in range(rounds + 1):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                process = here if name == IN_PROCESS else serving
                answers.add(burst(ways[name], count, process, result[name] if number else None))
                progress.update()
    if len(answers - {""}) > 1:
        raise SystemExit(f"the answers differ: {sorted(answers)}")
    return result


def show(result: dict[str, Spent]) -> Table:
    table = Table("way", "median latency ms", "ratio", "CPU ms a request", "ratio", box=None)
    base = result[IN_PROCESS]
    latency_of, cpu_of = (statistics.median(base.latencies_ms), statistics.fmean(base.cpu_ms))
    for name, spent in result.items():
        latency, cpu = statistics.median(spent.latencies_ms), statistics.fmean(spent.cpu_ms)
        table.add_row(name, f"{latency:.2f}", f"{latency / latency_of:.2f}", f"{cpu:.2f}", f"{cpu / cpu_of:.2f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="What each protocol adds to a transcription.")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of the recording, a 16 bit WAV [3]")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of bursts [10]")
    parser.add_argument("--burst", type=int, default=25, help="calls in a burst [25]")
    options = parser.parse_args()
    out = console()
    file = encoded(recording(options.seconds), "WAV", "PCM_16")
    recognizer = Recognizer.load(EMBEDDED_BUNDLE)
    with server() as address, httpx.Client(base_url=address, timeout=60) as client:
        (serving,) = (child for child in psutil.Process().children() if "predictor" in child.cmdline())
        result = in_bursts(calls(client, recognizer, file), serving, options.rounds, options.burst)
    out.print(f"{options.seconds:g} s of audio, {options.rounds} bursts of {options.burst} calls each\n")
    out.print(show(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
