"""A real Prometheus that scrapes one target every second, and answers PromQL."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from serving import free_port

BINARY = shutil.which("prometheus")
START_SECONDS = 30

_CONFIGURATION = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: vani
    metrics_path: {path}
    static_configs: [{{targets: ["{target}"]}}]
"""


@dataclass(frozen=True)
class Prometheus:
    address: str

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series of an instant vector."""
        answer = httpx.get(f"{self.address}/api/v1/query", params={"query": promql}, timeout=10).json()
        assert answer["status"] == "success", answer
        return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def value(self, promql: str) -> float | None:
        """The value of the only series, or None where there is none."""
        found = self.query(promql)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait(self, promql: str, seconds: float = 20) -> list[tuple[dict[str, str], float]]:
        """The series of a query, once there are some."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(promql)):
            assert time.monotonic() < deadline, f"nothing for {promql} after {seconds} s: {self.targets()}"
            time.sleep(0.1)
        return found

    def targets(self) -> list[dict]:
        """What is scraped, with `health` and `lastError`."""
        return httpx.get(f"{self.address}/api/v1/targets", timeout=10).json()["data"]["activeTargets"]


@contextmanager
def scraping(directory: Path, target: str, path: str = "/metrics") -> Iterator[Prometheus]:
    """A Prometheus with its data in `directory`, which scrapes `target` (HOST:PORT), and is gone afterwards."""
    assert BINARY is not None, "there is no prometheus on PATH"
    configuration = directory / "prometheus.yml"
    configuration.write_text(_CONFIGURATION.format(target=target, path=path))
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = directory / "prometheus.log"
    with log.open("w") as file:
        process = subprocess.Popen([BINARY, *options], stdout=file, stderr=file, cwd=directory)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _ready(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Prometheus(f"http://{address}")
    finally:
        process.kill()
        process.wait()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False
