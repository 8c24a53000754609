"""predictor.engine.torch: the network's own weights, in batches, row by row the same as alone."""

from dataclasses import replace

import numpy as np
import pytest
import small_whisper
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictor.bundle import FrontEnd
from predictor.engine import torch as door
from predictor.engine.choice import GPU_RULE
from predictor.engine.onnx import OnnxEngine
from predictor.engine.torch import LIKELIEST, TorchEngine, likeliest
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch, pad

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [300, 37, 38, 2, 299]


@pytest.fixture(scope="module")
def network():
    return small_whisper.network()


@pytest.fixture(scope="module")
def rows():
    return [small_whisper.features(length) for length in LENGTHS]


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    return small_whisper.write(tmp_path_factory.mktemp("bundles") / "small", network, weights=True, graph=True)


@pytest.fixture(scope="module")
def engine(bundle):
    return TorchEngine(bundle, device="cpu")


def test_each_row_of_a_batch_is_what_onnx_runtime_hears_in_it_alone(engine, bundle, rows):
    reference = OnnxEngine(bundle)
    for frames, emission in zip(rows, engine.infer(pad(rows)), strict=True):
        (expected,) = reference.infer(pad([frames]))
        assert emission.log_probs.shape == emission.tokens.shape == (len(expected.log_probs), LIKELIEST)
        assert (emission.log_probs.dtype, emission.tokens.dtype) == (np.float32, np.int32)
        assert small_whisper.differences(emission, expected.log_probs).max() < 1e-3


def test_a_row_does_not_depend_on_the_rows_beside_it(engine, rows):
    for frames, together in zip(rows, engine.infer(pad(rows)), strict=True):
        (alone,) = engine.infer(pad([frames]))
        np.testing.assert_allclose(together.log_probs, alone.log_probs, atol=1e-4)


def test_rows_of_one_length_need_no_mask_and_are_the_same(engine, network):
    frames = [small_whisper.features(120, seed) for seed in range(3)]
    for row, emission in zip(frames, engine.infer(pad(frames)), strict=True):
        assert small_whisper.differences(emission, small_whisper.log_probs(network, row)).max() < 1e-3


def test_in_bf16_the_likeliest_token_is_nearly_always_the_same(bundle, network, rows):
    emissions = TorchEngine(bundle, device="cpu", precision="bf16").infer(pad(rows))
    expected = [small_whisper.log_probs(network, frames) for frames in rows]
    said = np.concatenate([emission.tokens[:, 0] for emission in emissions])
    assert np.mean(said == np.concatenate(expected).argmax(axis=1)) > 0.9
    far = [small_whisper.differences(*pair)[:, 0] for pair in zip(emissions, expected, strict=True)]
    assert np.median(np.concatenate(far)) < 0.1


def test_blocks_of_frames_make_no_difference(engine, rows, monkeypatch):
    whole = engine.infer(pad(rows))
    monkeypatch.setattr(door, "_BLOCK_BYTES", {"cpu": 4 * 192 * 7})
    for mine, theirs in zip(engine.infer(pad(rows)), whole, strict=True):
        np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 999), st.integers(1, 8))
def test_the_likeliest_are_those_of_topk(rows, groups, seed, count):
    logits = torch.randn(rows, groups * 64, generator=torch.Generator().manual_seed(seed))
    scores, tokens = likeliest(logits, count)
    expected = logits.topk(count)
    assert torch.equal(scores, expected.values)
    assert torch.equal(logits.gather(1, tokens), expected.values)
    assert all(len(set(row)) == count for row in tokens.tolist())


def test_a_bundle_without_weights_is_refused_with_what_to_do(network, tmp_path):
    with pytest.raises(InvalidBundle, match="no weights for PyTorch; convert the model with them"):
        TorchEngine(small_whisper.write(tmp_path / "bundle", network))


@pytest.mark.parametrize("content", [b"", b"garbage" * 9, (2).to_bytes(8, "little") + b"{}"])
def test_what_are_no_weights_is_refused(bundle, tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidBundle, match=r"model\.safetensors is not a network that can be loaded"):
        TorchEngine(replace(bundle, directory=tmp_path), device="cpu")


def test_weights_of_another_network_are_refused(bundle):
    with pytest.raises(InvalidBundle, match="takes 80 mel bins, and 128 are given"):
        TorchEngine(replace(bundle, front_end=FrontEnd("whisper-log-mel", 128)), device="cpu")
    fewer = replace(bundle.vocabulary, tokens=bundle.vocabulary.tokens[:60])
    with pytest.raises(InvalidBundle, match="gives 150 tokens, 60 are spelt"):
        TorchEngine(replace(bundle, vocabulary=fewer), device="cpu")


def test_an_input_that_does_not_fit_is_a_failed_inference_and_the_next_one_is_answered(engine, rows):
    with pytest.raises(InferenceFailed):
        engine.infer(Batch(np.zeros((1, 3, 50), np.float32), np.array([50])))
    with pytest.raises(InferenceFailed):  # longer than its positions
        engine.infer(pad([small_whisper.features(3_002)]))
    assert engine.infer(pad(rows))


class TestOnAGpu:
    pytestmark = needs_gpu

    def test_fp32_is_what_the_cpu_hears(self, bundle, rows, engine):
        for mine, theirs in zip(
            TorchEngine(bundle, device="cuda", precision="fp32").infer(pad(rows)), engine.infer(pad(rows)), strict=True
        ):
            np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=0.05)  # TF32

    def test_bf16_is_the_default_and_the_likeliest_token_is_nearly_always_the_same(self, bundle, rows, engine):
        on_gpu = TorchEngine(bundle, GPU_RULE)
        assert (on_gpu.device, on_gpu.precision) == ("cuda", "bf16")
        pairs = zip(on_gpu.infer(pad(rows)), engine.infer(pad(rows)), strict=True)
        alike = [mine.tokens[:, 0] == theirs.tokens[:, 0] for mine, theirs in pairs]
        assert np.mean(np.concatenate(alike)) > 0.9
