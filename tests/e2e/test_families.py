"""The way that real weights go, with replicas: as published, converted, served and asked, by the command lines."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import reference_whisper
import torch
from asking import audio as speech
from asking import outputs
from reference_conformer import Reference
from serving import REPOSITORY, serving

from pipelines import checkpoint
from predictor.audio import decode
from predictor.features import nemo
from predictor.recognizer import Recognizer
from predictor.segments import Window

RATE_HZ = 16_000
LANGUAGES = ("hi", "ta", "ur")


def pipelines(*arguments, status=0):
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == status, done.stderr
    return done


@cache
def noise(seconds, seed):
    """Noise that grows louder and softer, without a pause: one window."""
    count = int(seconds * RATE_HZ)
    loudness = 0.1 + 0.05 * np.sin(np.arange(count) / 2_000)
    return (loudness * np.random.default_rng(seed).normal(size=count)).astype(np.float32)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Replicas of both families, as they are downloaded."""
    directory = tmp_path_factory.mktemp("published")
    for family in ("phowhisper", "indic-conformer"):
        pipelines("replica", family, directory / family)
    return directory


@pytest.fixture(scope="module")
def bundles(published):
    for family in ("phowhisper", "indic-conformer"):
        done = pipelines("convert", published / family, published / f"{family}-bundle", "--name", family)
        assert "sha256:" in done.stdout
    return {family: published / f"{family}-bundle" for family in ("phowhisper", "indic-conformer")}


@pytest.fixture(scope="module")
def client(tmp_path_factory, bundles):
    both = ":".join(map(str, bundles.values()))
    with serving(tmp_path_factory.mktemp("server") / "log", bundle=both) as running, running.client() as asking:
        yield asking


def ask(client, model, samples, **parameters):
    tensor = {"name": "audio", "datatype": "FP32", "shape": [len(samples)], "data": samples.tolist()}
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor], "parameters": parameters})


def words(reference, tokens, language):
    """What the published code makes of token ids, but for the number of spaces."""
    return "".join(reference.vocabulary[language][token] for token in tokens).replace("▁", " ").split()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("decoding", ["ctc", "rnnt"])
def test_an_indic_conformer_says_what_the_published_code_says(client, published, language, decoding):
    reference = Reference(published / "indic-conformer")
    samples = noise(3.1, LANGUAGES.index(language))
    encoded = reference.encode(nemo.log_mel(samples))
    tokens = reference.ctc(encoded, language) if decoding == "ctc" else reference.rnnt(encoded, language)[0]
    found = outputs(ask(client, "indic-conformer", samples, language=language, decoding=decoding))
    assert found["text"][0].split() == words(reference, tokens, language)
    assert len(tokens) > 5
    spans = [(word["start_seconds"], word["end_seconds"]) for word in json.loads(found["words"][0])]
    assert spans == sorted(spans)
    assert 0 <= spans[0][0] < spans[-1][1] <= 3.2


def test_a_phowhisper_says_what_its_description_says(client, published):
    tensors = checkpoint.read(published / "phowhisper")
    state = {name: torch.from_numpy(tensor.read()) for name, tensor in tensors.items()}
    reference = reference_whisper.Reference(published / "phowhisper", state)
    for seed in range(3):
        samples = noise(3.1, seed)
        found = outputs(ask(client, "phowhisper", samples, language="vi"))
        expected = reference.transcribe(samples, padded=False)
        assert found["text"][0].split() == expected.split()
        assert len(expected) > 20


@pytest.mark.parametrize("audio", ["noise", "speech"])
def test_what_is_padded_says_what_the_description_says_of_thirty_seconds(published, tmp_path, audio):
    pipelines("convert", published / "phowhisper", tmp_path / "padded", "--length", "padded")
    tensors = checkpoint.read(published / "phowhisper")
    state = {name: torch.from_numpy(tensor.read()) for name, tensor in tensors.items()}
    reference = reference_whisper.Reference(published / "phowhisper", state)
    samples = noise(3.1, 7) if audio == "noise" else decode(speech("vi"), 60.0).samples
    recognizer = Recognizer.load(tmp_path / "padded")
    words, _ = recognizer.recognize(Window(0.0, samples), "vi")
    assert [word.text for word in words] == reference.transcribe(samples, padded=True).split()


def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(published, tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    shutil.copy(published / "phowhisper" / "vocab.json", evil)
    torch.save({"state_dict": {}, "processor": Evil(tmp_path / "ran")}, evil / "model.ckpt")
    done = pipelines("convert", evil, tmp_path / "bundle", status=3)
    assert "refused: it calls" in done.stderr
    assert "system" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "bundle").exists()


class Evil:
    """Runs a program where it is unpickled."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self._marker}",)


def test_a_language_is_found_where_none_is_named(client):
    found = outputs(ask(client, "indic-conformer", noise(2.0, 9), language="auto"))
    assert found["text"][0]
    assert len(found["language"][0]) in (2, 3)


def test_less_than_a_tenth_of_a_second_says_nothing(client):
    for model, language in (("indic-conformer", "hi"), ("phowhisper", "vi")):
        assert outputs(ask(client, model, noise(3.1, 0)[:1_500], language=language))["text"] == [""]


def test_a_decoding_that_a_model_has_not_is_refused(client):
    response = ask(client, "phowhisper", noise(1.0, 1), decoding="rnnt")
    assert response.status_code == 400
    assert "no RNN-T" in response.text


def test_the_doctor_confirms_replicas_and_bundles(published, bundles):
    for path in (published / "phowhisper", published / "indic-conformer", *bundles.values()):
        found = json.loads(pipelines("doctor", path, "--json").stdout)
        assert all(finding["ok"] for finding in found if finding["needed"])
        assert len(found) > 5


def test_the_doctor_names_what_is_wrong(published, tmp_path):
    shutil.copytree(published / "indic-conformer", tmp_path / "odd")
    path = tmp_path / "odd" / "assets" / "language_masks.json"
    masks = json.loads(path.read_text())
    masks["hi"][7] = True
    path.write_text(json.dumps(masks))
    done = pipelines("doctor", tmp_path / "odd", status=3)
    assert "NO " in done.stdout
    assert "mask" in done.stdout
    assert "hi" in done.stdout
    refused = pipelines("convert", tmp_path / "odd", tmp_path / "bundle", status=3)
    assert "mask" in refused.stderr
    assert not (tmp_path / "bundle").exists()


def test_metadata_says_what_a_model_can_do(client):
    found = client.get("/v2/models/indic-conformer").json()["parameters"]
    assert (found["family"], found["decodings"], len(found["languages"])) == ("indic-conformer", ["ctc", "rnnt"], 22)
    assert client.get("/v2/models/phowhisper").json()["parameters"]["decodings"] == ["ctc"]
