"""predictor.features.nemo: parity with the recipe in torch, and the edges that the recipe does not have."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank

from predictor.features import HOP_SAMPLES, SAMPLE_RATE_HZ
from predictor.features.nemo import SHORTEST_SAMPLES, log_mel

TOLERANCE = 1e-4
CLIPS = sorted((Path(__file__).parents[3] / "demo" / "testset" / "audio").glob("*.opus"))[::13]
FILTERS = torch.tensor(mel_filter_bank(257, 80, 0.0, 8_000.0, SAMPLE_RATE_HZ, "slaney", "slaney").T)


def _reference(samples):
    """The recipe, line by line, in float64: what the float32 of TorchScript and ours both come near to."""
    x = torch.tensor(samples, dtype=torch.float64)[None]
    x = torch.cat([x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], dim=1)
    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(x, 512, 160, 400, window, center=True, pad_mode="reflect", return_complex=True)
    log = torch.log(FILTERS @ spectrum.abs().pow(2) + 2.0**-24)
    mean, std = log.mean(dim=2, keepdim=True), log.std(dim=2, keepdim=True, unbiased=True)
    return ((log - mean) / (std + 1e-5))[0].numpy()


def _noise(count, seed=0, scale=0.1):
    return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


def _assert_parity(samples, tolerance=TOLERANCE):
    ours, theirs = log_mel(samples), _reference(samples)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (80, len(samples) // HOP_SAMPLES + 1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_recorded_speech_gives_what_the_recipe_gives(clip):
    samples, rate = soundfile.read(clip, dtype="float32", always_2d=True)
    _assert_parity(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE_HZ).astype(np.float32))


def test_there_are_thirty_recorded_clips():
    assert len(CLIPS) >= 29


SIGNALS = {
    "noise": _noise(48_000),
    "loud noise": _noise(48_000, scale=1.0),
    "faint noise": _noise(48_000, scale=1e-4),
    "noise, then less": _noise(48_000) * np.linspace(1, 1e-3, 48_000, dtype=np.float32),
    "offset and noise": _noise(48_000, scale=0.01) + np.float32(0.05),
    "15 s": _noise(15 * SAMPLE_RATE_HZ),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_synthetic_signals_give_what_the_recipe_gives(name):
    _assert_parity(SIGNALS[name])


@pytest.mark.parametrize("count", [1_600, 1_601, *range(1_755, 1_766), 2_559, 2_560, 2_561, 15_999, 16_001])
def test_every_length_from_a_tenth_of_a_second_on_gives_what_the_recipe_gives(count):
    _assert_parity(_noise(count, seed=count))


@pytest.mark.parametrize("count", [0, 1, 2, 159, 160, 256, 257, 258, 1_599])
def test_audio_shorter_than_a_tenth_of_a_second_is_extended_with_silence(count):
    samples = _noise(count, seed=count)
    ours = log_mel(samples)
    assert ours.shape == (80, SHORTEST_SAMPLES // HOP_SAMPLES + 1)
    assert np.array_equal(ours, log_mel(np.pad(samples, (0, SHORTEST_SAMPLES - count))))
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("level", [0.0, 1e-9])
def test_silence_is_zero_and_not_a_rounding_divided_by_nothing(level):
    assert not log_mel(np.full(20_000, level, np.float32)).any()


@settings(max_examples=50, deadline=None)
@given(count=st.integers(SHORTEST_SAMPLES, 30_000), scale=st.sampled_from([1e-6, 0.1, 1.0]))
def test_rows_have_mean_0_and_deviation_1_and_ten_milliseconds_are_one_frame(count, scale):
    frames = log_mel(_noise(count, scale=scale))
    assert frames.shape == (80, count // HOP_SAMPLES + 1)
    np.testing.assert_allclose(frames.mean(axis=1), 0, atol=1e-3)
    if scale > 1e-6:  # fainter rows are held down by what keeps the division from nothing
        np.testing.assert_allclose(frames.std(axis=1, ddof=1), 1, atol=1e-3)


def test_the_samples_are_left_as_they_were():
    samples = _noise(16_000)
    before = samples.copy()
    log_mel(samples)
    assert np.array_equal(samples, before)
