"""predictor.settings: every knob comes from the environment, and a wrong one stops the process by its name."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from predictor import settings
from predictor.settings import InvalidSettings, Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No VANI_ASR_ variable but those of the test."""
    for name in list(os.environ):
        if name.upper().startswith(settings.PREFIX):
            monkeypatch.delenv(name)
    return monkeypatch


def test_an_empty_environment_gives_the_documented_defaults():
    found = settings.load()
    cores = settings.available_cores()
    assert found.model_dump() == {
        "bundle": (settings.EMBEDDED_BUNDLE,),
        "model_name": None,
        "model_repository": None,
        "engine": "auto",
        "http_port": 8080,
        "grpc_port": 8081,
        "engine_threads": cores,
        "decode_threads": cores,
        "max_pending_requests": 256,
        "max_pending_audio_seconds": 1_800.0,
        "max_pending_mb": 512,
        "max_body_mb": 128,
        "max_audio_seconds": 1_800.0,
        "request_timeout_seconds": 300.0,
        "api_keys_file": None,
        "cors_origins": (),
        "cache_mb": 0,
        "shutdown_grace_seconds": 30,
        "log_format": "text",
        "log_level": "INFO",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bundle", "/mnt/models", (Path("/mnt/models"),)),
        ("bundle", "/mnt/vi:/mnt/hi:relative", (Path("/mnt/vi"), Path("/mnt/hi"), Path("relative"))),
        ("bundle", ":/mnt/vi::/mnt/hi:", (Path("/mnt/vi"), Path("/mnt/hi"))),
        ("bundle", "/mnt/my models", (Path("/mnt/my models"),)),
        ("model_repository", "/mnt/repository", Path("/mnt/repository")),
        ("model_name", "asr-vi.2", "asr-vi.2"),
        ("http_port", "1", 1),
        ("http_port", "65535", 65_535),
        ("grpc_port", "0", 0),
        ("engine_threads", "1024", 1_024),
        ("decode_threads", "3", 3),
        ("max_pending_requests", "1", 1),
        ("max_pending_audio_seconds", "0.5", 0.5),
        ("max_pending_mb", "1", 1),
        ("max_body_mb", "1024", 1_024),
        ("max_audio_seconds", "0.5", 0.5),
        ("request_timeout_seconds", "0.5", 0.5),
        ("api_keys_file", "/etc/vani/keys", Path("/etc/vani/keys")),
        ("cors_origins", "https://a.example", ("https://a.example",)),
        ("cors_origins", " https://a.example,http://b:3000 ,, ", ("https://a.example", "http://b:3000")),
        ("cors_origins", "*", ("*",)),
        ("cache_mb", "64", 64),
        ("shutdown_grace_seconds", "0", 0),
        ("log_format", "json", "json"),
        ("log_level", "DEBUG", "DEBUG"),
    ],
)
def test_a_variable_sets_its_value(environment, name, text, value):
    environment.setenv(settings.PREFIX + name.upper(), text)
    assert settings.load() == Settings(**{name: value})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_means_the_default(environment, name):
    before = settings.load()
    environment.setenv(settings.PREFIX + name.upper(), "")
    assert settings.load() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BUNDLE", ":"),
        ("BUNDLE", "::"),
        ("MODEL_NAME", "Über"),
        ("MODEL_NAME", "-vi"),
        ("MODEL_NAME", "vi-"),
        ("MODEL_NAME", "a/b"),
        ("MODEL_NAME", "vi\n"),
        ("HTTP_PORT", "0"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "http"),
        ("GRPC_PORT", "-1"),
        ("GRPC_PORT", "65536"),
        ("ENGINE_THREADS", "0"),
        ("ENGINE_THREADS", "1025"),
        ("ENGINE_THREADS", "1.5"),
        ("DECODE_THREADS", "0"),
        ("DECODE_THREADS", "1025"),
        ("MAX_PENDING_REQUESTS", "0"),
        ("MAX_PENDING_AUDIO_SECONDS", "0"),
        ("MAX_PENDING_AUDIO_SECONDS", "inf"),
        ("MAX_PENDING_AUDIO_SECONDS", "nan"),
        ("MAX_PENDING_MB", "0"),
        ("MAX_BODY_MB", "0"),
        ("MAX_BODY_MB", "1025"),
        ("MAX_AUDIO_SECONDS", "0"),
        ("MAX_AUDIO_SECONDS", "nan"),
        ("MAX_AUDIO_SECONDS", "inf"),
        ("REQUEST_TIMEOUT_SECONDS", "0"),
        ("REQUEST_TIMEOUT_SECONDS", "inf"),
        ("CACHE_MB", "-1"),
        ("SHUTDOWN_GRACE_SECONDS", "-1"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "TRACE"),
    ],
)
def test_a_value_that_cannot_be_stops_with_the_variables_name(environment, name, text):
    environment.setenv(settings.PREFIX + name, text)
    with pytest.raises(InvalidSettings) as caught:
        settings.load()
    assert str(caught.value).startswith(f"VANI_ASR_{name}: ")


@pytest.mark.parametrize("name", ["VANI_ASR_HTTP_PROT", "VANI_ASR_", "VANI_ASR_SERVICE_HOST", "vani_asr_http_prot"])
@pytest.mark.parametrize("value", ["", "8080"])
def test_a_variable_that_is_no_setting_stops_with_its_name(environment, name, value):
    environment.setenv(name, value)
    with pytest.raises(InvalidSettings, match=f"^{name}: there is no such setting$"):
        settings.load()


def test_every_wrong_variable_has_its_own_line(environment):
    environment.setenv("VANI_ASR_HTTP_PORT", "0")
    environment.setenv("VANI_ASR_LOG_LEVEL", "LOUD")
    with pytest.raises(InvalidSettings) as caught:
        settings.load()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "VANI_ASR_HTTP_PORT",
        "VANI_ASR_LOG_LEVEL",
    ]


@pytest.mark.parametrize("name", ["VANI_PORT", "VANI_SERVICE_HOST", "VANI_PORT_8080_TCP", "HTTP_PORT", "LOG_LEVEL"])
def test_variables_without_the_prefix_are_not_ours(environment, name):
    environment.setenv(name, "tcp://10.0.0.1:80")
    assert settings.load() == Settings()


def test_settings_do_not_change_after_the_start():
    found = settings.load()
    with pytest.raises(ValidationError):
        found.http_port = 1
    assert found.http_port == 8080


def test_the_description_has_a_line_with_every_name_reason_and_default():
    lines = settings.describe().splitlines()
    assert len(lines) == len(Settings.model_fields)
    for line, (name, field) in zip(lines, Settings.model_fields.items(), strict=True):
        assert line.split()[0] == settings.PREFIX + name.upper()
        assert field.description
        assert field.description in line
    assert settings.describe().count("[8080]") == 1
    assert "[1800]" in settings.describe()
    assert "[.../vani-demo-1]" in settings.describe()
    assert not re.search(r"\[(None|\(|\))", settings.describe())
    assert str(settings.EMBEDDED_BUNDLE.parent) not in settings.describe()


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        (None, 16),
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("25000 50000\n", 1),
        ("", 16),
        ("nonsense", 16),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_containers_limit(environment, tmp_path, cpu_max, cores):
    file = tmp_path / "cpu.max"
    if cpu_max is not None:
        file.write_text(cpu_max)
    environment.setattr(settings, "_CGROUP_CPU_MAX", file)
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert settings.available_cores() == cores
    assert (settings.load().engine_threads, settings.load().decode_threads) == (cores, cores)
