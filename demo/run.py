"""`make demo`: a real server, real V2 requests, and what it understood beside what was said."""

import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from demo import testset
from demo.rates import Result, word_error_rate
from demo.testset import Clip
from predictor.settings import available_cores

MODEL = "vani-demo"
SHOWN = 6  # clips a language in the table; all are sent
START_SECONDS = 120


class ServerFailed(Exception):
    """The server did not come up, or did not stop as it should; the message is its log."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(**settings: object) -> Iterator[str]:
    """A predictor of its own on a free port: its address, once the model is ready. Raises ServerFailed.

    `settings` are VANI_ASR_* by their names in lower case, on top of the environment's.
    """
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "predictor", "serve"]
        chosen = {"http_port": port, "grpc_port": 0, **settings}
        environment = {**os.environ, **{f"VANI_ASR_{name.upper()}": str(value) for name, value in chosen.items()}}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, address)
            yield address
            process.send_signal(signal.SIGTERM)
            _wait_until_stopped(process)
        except (ServerFailed, subprocess.TimeoutExpired) as error:
            log.seek(0)
            raise ServerFailed(f"{error}; its log:\n{log.read()[-4000:]}") from error
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"the server ended with status {process.returncode}")
        try:
            if httpx.get(f"{address}/v2/models/{MODEL}/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise ServerFailed(f"the server was not ready after {START_SECONDS} s")


def _wait_until_stopped(process: subprocess.Popen[bytes]) -> None:
    if process.wait(timeout=60) != 0:
        raise ServerFailed(f"the server stopped with status {process.returncode}")


async def _ask(client: httpx.AsyncClient, clip: Clip) -> Result:
    audio = base64.b64encode((testset.DIRECTORY / clip.audio).read_bytes()).decode()
    inputs = [
        {"name": "audio", "datatype": "BYTES", "shape": [1], "data": [audio]},
        {"name": "language", "datatype": "BYTES", "shape": [1], "data": [clip.language]},
    ]
    response = await client.post(f"/v2/models/{MODEL}/infer", json={"inputs": inputs, "outputs": [{"name": "text"}]})
    response.raise_for_status()
    return Result(clip, response.json()["outputs"][0]["data"][0])


async def _ask_all(address: str, clips: list[Clip]) -> list[Result]:
    # Two requests a core keep every core busy while the next file is being decoded.
    limits = httpx.Limits(max_connections=2 * available_cores())
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        tasks = [asyncio.create_task(_ask(client, clip)) for clip in clips]
        for done in tqdm(asyncio.as_completed(tasks), "transcribing", len(tasks), unit="clip"):
            await done
        return [task.result() for task in tasks]


def _marked(text: str, other: str) -> Text:
    """`text` with the words that `other` does not have in red."""
    known = set(other.split())
    return Text(" ").join(Text(word, "" if word in known else "bold red") for word in text.split())


def run() -> int:
    """Serve, ask, show, stop. Returns the process's exit status."""
    console = Console()
    clips = testset.read()
    try:
        with server() as address:
            digest = httpx.get(f"{address}/health").json()["bundle_digest"]
            console.print(f"serving {MODEL} at {address}, bundle {digest[:23]}...", highlight=False)
            started = time.perf_counter()
            results = asyncio.run(_ask_all(address, clips))
            seconds = time.perf_counter() - started
    except ServerFailed as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    _show(console, results)
    audio_seconds = sum(clip.duration_seconds for clip in clips)
    speed = f"{audio_seconds / seconds:.0f} times real time, over HTTP"
    console.print(f"\n{audio_seconds:.0f} s of speech in {seconds:.1f} s: {speed}", highlight=False)
    console.print("the server stopped cleanly; `make serve` keeps one up", highlight=False)
    return 0


def _show(console: Console, results: list[Result]) -> None:
    sample = Table("", "said", "understood", box=None)
    rates = Table("language", "sentences", "clips", "word error rate", box=None)
    for language in sorted({r.clip.language for r in results}, reverse=True):
        natural = [r for r in results if (r.clip.language, r.clip.kind) == (language, "natural")]
        for result in natural[:: len(natural) // SHOWN][:SHOWN]:
            said, understood = result.clip.text, result.text
            sample.add_row(language, _marked(said, understood), _marked(understood, said))
        for kind in ("natural", "random"):
            part = [r for r in results if (r.clip.language, r.clip.kind) == (language, kind)]
            rates.add_row(language, kind, str(len(part)), f"{word_error_rate(part):.2%}")
    console.print(sample, rates, sep="\n\n")
