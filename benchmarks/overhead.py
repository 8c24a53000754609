"""What serving costs without recognition: server CPU per request, by protocol, over a recogniser that hears nothing.

In goes a 10 s recording of 16 bit PCM (320 kB); out comes the CPU time that the server's process spends on a request,
and its ratio to a bare FastAPI route that takes the same bytes. All ways take turns by bursts, against servers that run
side by side. CPU time and not latency: the client runs on the same cores. It is a gate too: it exits with 1 where a
ratio is above its limit.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
from clients import Connection, form, post
from measuring import console, encoded
from rich.table import Table
from tqdm import tqdm

HTTP, RPC, BARE = 8480, 8481, 8482
START_SECONDS = 60
CONNECTIONS = 4
LIMITS = {"V2, binary tensor": 3.0, "V2, gRPC": 3.0, "V2, JSON with base64": 8.0, "multipart, OpenAI's route": 3.0}
NAME = "vani-demo"

Way = Callable[[int], Awaitable[None]]


@contextlib.contextmanager
def server(kind: str, port: int) -> Iterator[psutil.Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VANI_ASR_")}
    environment |= {"VANI_ASR_HTTP_PORT": str(port), "VANI_ASR_GRPC_PORT": str(RPC), "VANI_ASR_LOG_LEVEL": "WARNING"}
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("noop.py"), kind], env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=1)
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"the {kind} server did not start") from None
                time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def cpu_ms(process: psutil.Process) -> float:
    """Of all threads, to the nanosecond: the kernel's tick of 10 ms would be as long as thirty requests."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


def http(port: int, request: bytes) -> Way:
    """`count` requests over CONNECTIONS kept open."""

    async def way(count: int) -> None:
        async def caller() -> None:
            connection = Connection(port)
            for _ in range(count // CONNECTIONS):
                answer = await connection.send(request)
                if answer.status != 200:  # noqa: PLR2004
                    raise SystemExit(f"answered {answer.status}: {answer.body[:200]!r}")
            connection.close()

        await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))

    return way


def rpc(audio: bytes) -> Way:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

    tensor = pb.ModelInferRequest.InferInputTensor(name="audio", datatype="BYTES", shape=[1])
    request = pb.ModelInferRequest(
        model_name=NAME,
        inputs=[tensor],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="text")],
        raw_input_contents=[struct.pack("<I", len(audio)) + audio],
    )

    async def way(count: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{RPC}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)

            async def caller() -> None:
                for _ in range(count // CONNECTIONS):
                    await stub.ModelInfer(request)

            await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))

    return way


def ways(audio: bytes) -> dict[str, tuple[str, Way]]:
    """Name -> whose CPU time counts, and how it is asked."""
    infer, octets, plain_json = f"/v2/models/{NAME}/infer", "application/octet-stream", "application/json"
    tensor, outputs = {"name": "audio", "datatype": "BYTES", "shape": [1]}, [{"name": "text"}]
    encoded_audio = base64.b64encode(audio).decode()
    in_json = json.dumps({"inputs": [tensor | {"data": [encoded_audio]}], "outputs": outputs}).encode()
    element = struct.pack("<I", len(audio)) + audio
    sized = tensor | {"parameters": {"binary_data_size": len(element)}}
    head = json.dumps({"inputs": [sized], "outputs": outputs}).encode()
    upload, upload_type = form(audio)
    asr = json.dumps({"audio_base64": encoded_audio, "lang": "vi"}).encode()
    length = {"Inference_Header_Content_Length": str(len(head))}
    requests = {
        "V1, the file as the body": post(f"/v1/models/{NAME}:predict", audio, "audio/wav"),
        "V2, binary tensor": post(infer, head + element, octets, **length),
        "V2, JSON with base64": post(infer, in_json, plain_json),
        "multipart, OpenAI's route": post("/v1/audio/transcriptions", *form(audio, model="whisper-1")),
        "multipart, /transcribe": post("/transcribe", upload, upload_type),
        "JSON with base64, /asr": post("/asr", asr, plain_json),
    }
    return {
        "bare FastAPI, raw body": ("bare", http(BARE, post("/raw", audio, octets))),
        "bare FastAPI, multipart": ("bare", http(BARE, post("/form", upload, upload_type))),
        "V2, gRPC": ("vani", rpc(audio)),
        **{name: ("vani", http(HTTP, request)) for name, request in requests.items()},
    }


async def in_bursts(
    cases: dict[str, tuple[str, Way]], processes: dict[str, psutil.Process], rounds: int, count: int
) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    with tqdm(total=(rounds + 1) * len(names), desc="overhead", unit="burst", leave=False, disable=None) as progress:
        for number in range(rounds + 1):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                whose, way = cases[name]
                before = cpu_ms(processes[whose])
                await way(count)
                if number:
                    costs[name].append((cpu_ms(processes[whose]) - before) / count)
                progress.update()
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description="What serving costs without recognition, by protocol.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of bursts, of which the median is shown [7]")
    parser.add_argument("--burst", type=int, default=200, help="requests in a burst [200]")
    options = parser.parse_args()
    out = console()
    audio = encoded(np.zeros(160_000, np.float32), "WAV", "PCM_16")
    with server("bare", BARE) as bare, server("vani", HTTP) as vani:
        cases = ways(audio)
        costs = asyncio.run(in_bursts(cases, {"bare": bare, "vani": vani}, options.rounds, options.burst))
    table = Table("way", "server CPU ms a request", "ratio to the bare route", "limit", box=None)
    base, too_much = statistics.median(costs["bare FastAPI, raw body"]), []
    for name, samples in costs.items():
        cost, limit = statistics.median(samples), LIMITS.get(name)
        table.add_row(name, f"{cost:.3f}", f"{cost / base:.2f}", f"{limit:g}" if limit else "")
        if limit and cost / base > limit:
            too_much.append(name)
    out.print(
        f"{len(audio)} bytes, {options.rounds} bursts of {options.burst} requests over {CONNECTIONS} connections\n"
    )
    out.print(table)
    if too_much:
        out.print(f"\nabove the limit: {', '.join(too_much)}")
    return 1 if too_much else 0


if __name__ == "__main__":
    sys.exit(main())
