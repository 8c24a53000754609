"""Light things stay light: what an import loads, and what the serving image installs."""

import re
import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

HEAVY = ("kserve", "torch", "kfp", "transformers", "onnx", "fastapi", "pandas")


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_recognizer_loads_no_server_no_torch_and_no_kfp():
    assert loaded_by("predictor.recognizer").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module", ["predictor", "predictor.errors", "predictor.bundle", "predictor.settings", "predictor.__main__"]
)
def test_what_only_reads_loads_no_engine(module):
    assert loaded_by(module).isdisjoint({*HEAVY, "onnxruntime", "soundfile", "av", "numpy"})


def closure(extra: str) -> set[str]:
    """Every distribution that `vani[extra]` installs here, found through the installed packages' own metadata."""
    pending, seen = [Requirement(f"vani[{extra}]")], set()
    while pending:
        wanted = pending.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), tuple(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        for text in requires(wanted.name) or []:
            requirement = Requirement(text)
            environments = [{"extra": name} for name in ("", *wanted.extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
                pending.append(requirement)
    return {name for name, _ in seen}


def test_the_serving_image_installs_neither_torch_nor_kfp():
    installed = closure("predictor")
    assert {"kserve", "onnxruntime", "soundfile"} <= installed
    assert installed.isdisjoint({"torch", "kfp", "transformers", "onnx", "torchaudio", "datasets"})
