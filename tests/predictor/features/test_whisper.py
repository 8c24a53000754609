"""predictor.features: parity with transformers' WhisperFeatureExtractor, without its 30 seconds of padding."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from predictor.features import HOP_SAMPLES, SAMPLE_RATE_HZ, pad
from predictor.features.mel import mel_filters
from predictor.features.whisper import N_FFT, log_mel

TOLERANCE = 1e-4
CLIPS = sorted((Path(__file__).parents[3] / "demo" / "testset" / "audio").glob("*.opus"))[::19]
EXTRACTORS = {bins: WhisperFeatureExtractor(feature_size=bins) for bins in (80, 128)}


def _reference(samples, mel_bins=80):
    """What transformers makes of the samples as they are: neither padded nor cut to 30 s."""
    made = EXTRACTORS[mel_bins](samples, sampling_rate=SAMPLE_RATE_HZ, padding=False, truncation=False)
    return np.asarray(made["input_features"][0])


def _noise(count, seed=0, scale=0.1):
    return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


def _chirp(seconds=3):
    t = np.arange(seconds * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    return np.sin(2 * np.pi * (50 * t + 1_300 * t**2)).astype(np.float32)


def _assert_parity(samples, mel_bins=80):
    ours, theirs = log_mel(samples, mel_bins), _reference(samples, mel_bins)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (mel_bins, len(samples) // HOP_SAMPLES)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


SIGNALS = {
    "noise": _noise(48_000),
    "loud noise": _noise(48_000, scale=10),
    "faint noise": _noise(48_000, scale=1e-5),
    "chirp": _chirp(),
    "silence": np.zeros(48_000, np.float32),
    "offset": np.full(16_000, 0.5, np.float32),
    "click": np.eye(1, 16_000, 8_000, dtype=np.float32)[0],
    "silence, then noise": np.concatenate([np.zeros(16_000, np.float32), _noise(16_000)]),
    "longer than 30 s": _noise(31 * SAMPLE_RATE_HZ),
}


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("name", SIGNALS)
def test_synthetic_signals_give_what_transformers_gives(name, mel_bins):
    _assert_parity(SIGNALS[name], mel_bins)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
def test_recorded_speech_gives_what_transformers_gives(clip):
    samples, rate = soundfile.read(clip, dtype="float32", always_2d=True)
    _assert_parity(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE_HZ).astype(np.float32))


def test_there_are_recorded_clips_of_both_languages():
    assert {clip.name[:2] for clip in CLIPS} == {"vi", "hi"}


@pytest.mark.parametrize("count", [*range(N_FFT, 490), 559, 560, 561, 639, 640, 641, 999, 1_000, 15_999, 16_001])
def test_every_length_from_one_analysis_window_on_gives_what_transformers_gives(count):
    _assert_parity(_noise(count, seed=count))


# Here we differ on purpose. Below 400 samples transformers fails (up to 200: its reflection wants more samples than
# there are) or reflects the few samples over and over; ours is what it gives for the same samples and silence after.
@pytest.mark.parametrize("count", [1, 2, 3, 100, 159, 160, 161, 199, 200, 201, 300, 398, 399])
def test_audio_shorter_than_one_analysis_window_is_extended_with_silence(count):
    samples = _noise(count, seed=count)
    ours = log_mel(samples)
    assert ours.shape == (80, N_FFT // HOP_SAMPLES)
    np.testing.assert_allclose(ours, _reference(np.pad(samples, (0, N_FFT - count))), rtol=0, atol=TOLERANCE)


@settings(max_examples=50)
@given(count=st.integers(N_FFT, 20_000), scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0]))
def test_ten_milliseconds_are_one_frame_and_every_value_is_a_number(count, scale):
    frames = log_mel(_noise(count, scale=scale))
    assert frames.shape == (80, count // HOP_SAMPLES)
    assert np.isfinite(frames).all()


def test_the_samples_are_left_as_they_were():
    samples = _noise(16_000)
    before = samples.copy()
    log_mel(samples)
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("mel_bins", [40, 80, 128])
def test_the_mel_filters_are_those_of_transformers(mel_bins):
    theirs = mel_filter_bank(N_FFT // 2 + 1, mel_bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, "slaney", "slaney")
    assert mel_filters(mel_bins, N_FFT).shape == (mel_bins, N_FFT // 2 + 1)
    np.testing.assert_allclose(mel_filters(mel_bins, N_FFT), theirs.T, rtol=0, atol=1e-8)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_pad_keeps_each_utterance_and_its_length_and_adds_only_zeros(lengths):
    features = [np.full((4, length), index + 1.0, np.float32) for index, length in enumerate(lengths)]
    batch = pad(features)
    assert batch.lengths.tolist() == lengths
    assert (batch.lengths.dtype, batch.frames.dtype) == (np.int64, np.float32)
    assert batch.frames.shape == (len(lengths), 4, max(lengths))
    for row, feature, length in zip(batch.frames, features, lengths, strict=True):
        assert np.array_equal(row[:, :length], feature)
        assert not row[:, length:].any()
