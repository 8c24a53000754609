"""A predictor as users run it: a process of its own on free ports."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 120
REPOSITORY = Path(__file__).parents[2]
OURS = ("VANI_ASR_", "OTEL_")  # variables that a server has from its test and from nowhere else


@dataclass(frozen=True)
class Server:
    """`address` is http://HOST:PORT, `grpc_address` HOST:PORT."""

    address: str
    grpc_address: str
    process: subprocess.Popen
    log: Path

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120, **options)

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of that name which have these labels; 0 where there is none."""
        text = httpx.get(f"{self.address}/metrics", timeout=120).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def idle(self) -> bool:
        """Whether nothing is held any more: no request, and no audio."""
        return self.metric("vani_asr_pending_requests") == self.metric("vani_asr_audio_seconds_in_flight") == 0

    def log_lines(self, having: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if having in line]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something that a server does in its own time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)


def start(log: Path, environment: Mapping[str, str] | None = None, **settings: object) -> Server:
    """Start `python -m predictor serve` with VANI_ASR_<SETTING> variables; returns at once."""
    port, grpc_port = (settings.pop(name, None) or free_port() for name in ("http_port", "grpc_port"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    variables |= {f"VANI_ASR_{name.upper()}": str(value) for name, value in settings.items()}
    variables |= {"VANI_ASR_HTTP_PORT": str(port), "VANI_ASR_GRPC_PORT": str(grpc_port), "PYTHONWARNINGS": "ignore"}
    with log.open("w") as file:
        command = [sys.executable, "-m", "predictor", "serve"]
        process = subprocess.Popen(
            command, env=variables | (environment or {}), stdout=file, stderr=file, cwd=REPOSITORY
        )
    return Server(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", process, log)


@contextmanager
def serving(log: Path, environment: Mapping[str, str] | None = None, **settings: object) -> Iterator[Server]:
    """A server that answers, and is gone afterwards."""
    server = start(log, environment, **settings)
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
