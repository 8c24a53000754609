"""Every knob of the serving process, with its unit and its reason. The environment is the only way to turn one.

The prefix is one that no Kubernetes Service can produce by accident: a Service named `vani` injects `VANI_PORT`, and
never `VANI_ASR_...` unless somebody names it so.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "VANI_ASR_"
EMBEDDED_BUNDLE = Path(__file__).parents[1] / "demo" / "bundles" / "vani-demo-1"
_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may really use: its affinity, and a container's CPU limit where there is one.

    A pod limited to two of a node's 64 cores that starts 64 threads spends its time being throttled.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return cores


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    bundle: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(
            min_length=1, description="model directory, or several with ':' between; KServe mounts one at /mnt/models"
        ),
    ] = (EMBEDDED_BUNDLE,)
    model_name: Annotated[
        str | None,
        Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", description="name in routes; default: the bundle's"),
    ] = None
    model_repository: Annotated[
        Path | None, Field(description="directory of further bundles, for /v2/repository to load; default: none")
    ] = None
    http_port: Annotated[int, Field(ge=1, le=65_535, description="port of every HTTP route")] = 8080
    grpc_port: Annotated[int, Field(ge=0, le=65_535, description="port of V2 over gRPC; 0 for none")] = 8081
    engine_threads: Annotated[
        int, Field(ge=1, le=1_024, description="windows inferred at once, a core each; default: the cores available")
    ] = Field(default_factory=available_cores)
    engine: Annotated[
        Literal["auto", "onnx", "openvino", "torch"],
        Field(
            description="what runs the network; auto: the fastest that is installed and that the bundle has files for"
        ),
    ] = "auto"
    decode_threads: Annotated[
        int, Field(ge=1, le=1_024, description="files decoded at once, apart from inference; default: as above")
    ] = Field(default_factory=available_cores)
    max_pending_requests: Annotated[
        int, Field(ge=1, description="requests accepted and not yet answered; the next one gets 503 and Retry-After")
    ] = 256
    max_pending_audio_seconds: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="audio of these requests; it tells how long a new one waits"),
    ] = 1_800.0
    max_pending_mb: Annotated[int, Field(ge=1, description="bytes of these requests' bodies, which are in memory")] = (
        512
    )
    max_body_mb: Annotated[int, Field(ge=1, le=1_024, description="largest request, over HTTP and gRPC")] = 128
    max_audio_seconds: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="longest recording, counted while decoding: a small file can hold hours",
        ),
    ] = 1_800.0
    request_timeout_seconds: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="longest wait for an answer; X-Request-Timeout may shorten it"),
    ] = 300.0
    api_keys_file: Annotated[
        Path | None, Field(description="who may call: see `keys --help`; default: everybody, without limits")
    ] = None
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="origins whose pages may call, with ',' between; default: none but this server's own page"),
    ] = ()
    cache_mb: Annotated[
        int, Field(ge=0, description="memory for transcripts of recordings that come again; 0 keeps none")
    ] = 0
    shutdown_grace_seconds: Annotated[
        int, Field(ge=0, description="what SIGTERM leaves to requests in flight; keep below the pod's grace period")
    ] = 30
    log_format: Annotated[Literal["text", "json"], Field(description="text for people, json for collectors")] = "text"
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="least severe line shown")] = (
        "INFO"
    )

    @field_validator("bundle", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class InvalidSettings(ValueError):
    """The environment says something that cannot be; the message has one line for each variable."""


def load() -> Settings:
    """Settings from the environment. Raises InvalidSettings for a bad value and for a name that does not exist."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise InvalidSettings("\n".join(f"{name}: there is no such setting" for name in unknown))
    try:
        return Settings()
    except ValidationError as error:
        lines = (f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise InvalidSettings("\n".join(lines)) from error


def describe() -> str:
    """The table of settings that `serve --help` prints."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default_factory or field.default in (None, ()) else f" [{_short(field.default)}]"
        rows.append(f"  {PREFIX + name.upper():<34} {field.description}{default}")
    return "\n".join(rows)


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return os.pathsep.join(map(_short, value))
    return f".../{value.name}" if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)
