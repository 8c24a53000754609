"""A predictor as users run it: a process of its own on a free port."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

START_SECONDS = 120
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    address: str
    process: subprocess.Popen
    log: Path

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120, **options)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(log: Path, **settings: object) -> Server:
    """Start `python -m predictor serve` with VANI_ASR_<SETTING> variables; returns at once."""
    port = settings.pop("http_port", None) or free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VANI_ASR_")}
    environment |= {f"VANI_ASR_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"VANI_ASR_HTTP_PORT": str(port), "PYTHONWARNINGS": "ignore"}
    with log.open("w") as file:
        command = [sys.executable, "-m", "predictor", "serve"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=REPOSITORY)
    return Server(f"http://127.0.0.1:{port}", process, log)


@contextmanager
def serving(log: Path, **settings: object) -> Iterator[Server]:
    """A server that answers, and is gone afterwards."""
    server = start(log, **settings)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert server.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s: {log.read_text()}"
            try:
                if httpx.get(f"{server.address}/v2/health/ready", timeout=5).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield server
    finally:
        server.process.kill()
        server.process.wait()
