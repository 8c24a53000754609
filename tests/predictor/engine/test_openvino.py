"""predictor.engine.openvino, and pipelines.openvino_ir that makes what it runs: as the network, on less memory."""

import importlib
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import small_whisper
from hypothesis import given
from hypothesis import strategies as st

from predictor.bundle import FrontEnd
from predictor.engine import BatchRule
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch, pad

if importlib.util.find_spec("openvino") is None:
    pytest.skip("needs the extra vani[openvino]", allow_module_level=True)

from pipelines import openvino_ir
from pipelines.errors import Permanent
from predictor.engine import openvino as door
from predictor.engine.onnx import OnnxEngine
from predictor.engine.openvino import GROUP, LIKELIEST, OpenVinoEngine, likeliest

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]
LENGTHS = [300, 37, 38, 2]


@pytest.fixture(scope="module")
def network():
    return small_whisper.network()


@pytest.fixture(scope="module")
def rows():
    return [small_whisper.features(length) for length in LENGTHS]


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    return small_whisper.write(tmp_path_factory.mktemp("bundles") / "fp32", network, ir="fp32", graph=True)


@pytest.fixture(scope="module")
def quantised(network, tmp_path_factory):
    return small_whisper.write(tmp_path_factory.mktemp("bundles") / "int8", network, ir="int8")


@pytest.fixture(scope="module")
def engine(bundle):
    return OpenVinoEngine(bundle)


def tolerance(engine):
    return 1e-3 if engine.precision == "fp32" else 0.2


def test_the_likeliest_tokens_are_the_networks_and_so_are_their_log_probabilities(engine, network, rows):
    for frames in rows:
        (emission,) = engine.infer(pad([frames]))
        expected = small_whisper.log_probs(network, frames)
        assert emission.log_probs.shape == emission.tokens.shape == (len(expected), LIKELIEST)
        assert (emission.log_probs.dtype, emission.tokens.dtype) == (np.float32, np.int32)
        assert small_whisper.differences(emission, expected).max() < tolerance(engine)


def test_it_hears_what_onnx_runtime_hears(engine, bundle, rows):
    for mine, theirs in zip(engine.infer(pad(rows)), OnnxEngine(bundle).infer(pad(rows)), strict=True):
        assert small_whisper.differences(mine, theirs.log_probs).max() < tolerance(engine)


def test_int8_takes_a_quarter_of_what_the_matrices_take(bundle, quantised, network):
    matrices = sum(p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name)
    saved = (bundle.path("model.bin").stat().st_size - quantised.path("model.bin").stat().st_size) / matrices
    assert (
        2.8 < saved < 3.1
    )  # bytes a weight: four become one; a scale a row, and the head is filled up to whole groups


def test_int8_differs_by_little_and_from_the_same_tokens(quantised, network, rows):
    (emission,) = OpenVinoEngine(quantised).infer(pad(rows[:1]))
    expected = small_whisper.log_probs(network, rows[0])
    assert np.median(small_whisper.differences(emission, expected)[:, 0]) < 0.2
    assert np.mean(emission.tokens[:, 0] == expected.argmax(axis=1)) > 0.9


def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_its_padding(engine, rows):
    together = engine.infer(pad(rows))
    dirty = pad(rows)
    for row, length in zip(dirty.frames, dirty.lengths, strict=True):
        row[:, length:] = 9.0
    for frames, *found in zip(rows, together, engine.infer(dirty), strict=True):
        (alone,) = engine.infer(pad([frames]))
        for emission in found:
            np.testing.assert_array_equal(emission.log_probs, alone.log_probs)
            np.testing.assert_array_equal(emission.tokens, alone.tokens)


def test_more_threads_than_streams_get_what_one_alone_gets(bundle, rows):
    engine = OpenVinoEngine(bundle, BatchRule(streams=2))
    alone = [engine.infer(pad([frames]))[0] for frames in rows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: engine.infer(pad([rows[number % 4]]))[0], range(40)))
    for number, emission in enumerate(found):
        np.testing.assert_array_equal(emission.log_probs, alone[number % 4].log_probs)


def test_blocks_of_frames_make_no_difference(engine, rows, monkeypatch):
    whole = engine.infer(pad(rows))
    monkeypatch.setattr(door, "_BLOCK_BYTES", 7 * 4 * len(small_whisper.network().classifier.bias))
    for mine, theirs in zip(engine.infer(pad(rows)), whole, strict=True):
        np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 999), st.sampled_from([0.5, 3.0, 30.0]), st.integers(1, 8))
def test_the_likeliest_are_those_of_a_full_sort(rows, groups, seed, spread, count):
    logits = np.random.default_rng(seed).normal(0, spread, (rows, groups * GROUP)).astype(np.float32)
    log_probs, tokens = likeliest(logits, count)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(np.take_along_axis(logits, tokens, 1), np.take_along_axis(logits, order, 1))
    np.testing.assert_allclose(log_probs, np.take_along_axis(exact, order, 1), atol=1e-4)


_PEAK = """
import resource, sys
import numpy as np
from pathlib import Path
from predictor import bundle
from predictor.engine.openvino import OpenVinoEngine
from predictor.features import pad
engine = OpenVinoEngine(bundle.read(Path(sys.argv[1])))
frames = [np.random.default_rng(0).normal(0, 0.5, (80, length)).astype(np.float32) for length in (200, 3000)]
engine.infer(pad(frames[:1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
engine.infer(pad(frames[1:]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_thirty_seconds_never_have_all_their_logits_in_memory(tmp_path):
    small_whisper.write(tmp_path / "large-head", small_whisper.network(50_258, 64, 1), ir="int8")
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "large-head")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024  # all of them are 294 MiB


def test_importing_it_tells_nobody(tmp_path):
    """OpenVINO's own import writes an identity to the home directory and sends an event."""
    program = "import predictor.engine.openvino, sys; print(sys.modules['openvino_telemetry'])"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert not list(tmp_path.rglob("*"))


def test_a_bundle_without_an_ir_is_refused_with_what_to_do(network, tmp_path):
    with pytest.raises(InvalidBundle, match="no OpenVINO IR; convert the model with one"):
        OpenVinoEngine(small_whisper.write(tmp_path / "bundle", network, weights=True))


@pytest.mark.parametrize("content", [b"", b"<net/>", b"not XML", b"<?xml version='1.0'?><net name='a' version='11'/>"])
def test_what_is_no_ir_is_refused(bundle, tmp_path, content):
    (tmp_path / "model.xml").write_bytes(content)
    with pytest.raises(InvalidBundle, match=r"model.xml is not an IR|the IR has "):
        OpenVinoEngine(replace(bundle, directory=tmp_path))


def test_an_ir_of_another_network_is_refused(bundle):
    mel = replace(bundle, front_end=FrontEnd("whisper-log-mel", 128))
    with pytest.raises(InvalidBundle, match="takes 80 mel bins, the front end gives 128"):
        OpenVinoEngine(mel)
    fewer = replace(bundle.vocabulary, tokens=bundle.vocabulary.tokens[:60])
    with pytest.raises(InvalidBundle, match="gives 160 tokens, 60 are spelt"):
        OpenVinoEngine(replace(bundle, vocabulary=fewer))


def test_an_input_that_does_not_fit_is_a_failed_inference_and_the_next_one_is_answered(engine, rows):
    with pytest.raises(InferenceFailed):
        engine.infer(Batch(np.zeros((1, 3, 50), np.float32), np.array([50])))
    assert engine.infer(pad(rows))


def test_weights_of_another_network_make_no_ir(tmp_path):
    with pytest.raises(Permanent, match="no OpenVINO IR can be made"):
        openvino_ir.write({"encoder.conv1.weight": np.zeros((64, 80, 3), np.float32)}, tmp_path / "model.xml", "fp32")
    assert not (tmp_path / "model.xml").exists()


def test_without_openvino_a_conversion_says_what_is_missing(monkeypatch):
    for name in ("pipelines.openvino_ir", "predictor.engine.openvino"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Permanent, match=r"pip install 'vani\[openvino\]'"):
        importlib.import_module("pipelines.openvino_ir")
