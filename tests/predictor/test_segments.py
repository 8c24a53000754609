"""predictor.segments: windows that join to the recording again, cut in pauses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import segments
from predictor.features import SAMPLE_RATE_HZ


def _noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


@given(
    samples=st.builds(_noise, st.integers(1, 120_000), st.integers(0, 99)),
    limit=st.integers(1, 40_000),
    quiet=st.tuples(st.integers(0, 100_000), st.integers(0, 20_000)),
)
def test_windows_join_to_the_samples_again_and_none_is_empty_or_too_long(samples, limit, quiet):
    samples = samples[: limit * 300]
    samples[quiet[0] : sum(quiet)] = 0
    windows = segments.split(samples, limit / SAMPLE_RATE_HZ)
    assert np.array_equal(np.concatenate([w.samples for w in windows]), samples)
    assert all(1 <= len(w.samples) <= limit for w in windows)


@given(length=st.integers(1, 400_000), limit=st.integers(8_000, 64_000))
def test_start_seconds_is_the_length_of_all_windows_before(length, limit):
    windows = segments.split(_noise(length), limit / SAMPLE_RATE_HZ)
    before = np.cumsum([0, *(len(w.samples) for w in windows)])
    assert [w.start_seconds for w in windows] == [start / SAMPLE_RATE_HZ for start in before[:-1]]


@pytest.mark.parametrize("seconds", [0.001, 1.0, 9.999, 10.0])
def test_a_recording_within_the_limit_is_one_window(seconds):
    samples = _noise(int(seconds * SAMPLE_RATE_HZ))
    (window,) = segments.split(samples, 10.0)
    assert window.start_seconds == 0
    assert np.array_equal(window.samples, samples)


def test_one_sample_over_the_limit_makes_a_second_window():
    assert len(segments.split(_noise(160_001), 10.0)) == 2


@given(at=st.integers(2 * 16_000 + 1, 3 * 16_000 - 4_000), length=st.integers(3_600, 4_000), seed=st.integers(0, 99))
def test_a_cut_falls_within_the_pause_where_there_is_one(at, length, seed):
    samples = _noise(5 * SAMPLE_RATE_HZ, seed)
    samples[at : at + length] = 0
    cut = len(segments.split(samples, 3.0)[0].samples)
    assert at < cut < at + length


def test_the_quieter_of_two_pauses_is_cut():
    samples = _noise(5 * SAMPLE_RATE_HZ)
    samples[34_000:38_000] *= 0.1
    samples[42_000:46_000] *= 0.01
    assert 42_000 < len(segments.split(samples, 3.0)[0].samples) < 46_000


def test_without_a_pause_at_least_two_thirds_of_the_window_are_used():
    sizes = [len(w.samples) for w in segments.split(_noise(1_000_000), 3.0)]
    assert min(sizes[:-1]) >= 32_000


def test_samples_are_not_copied():
    samples = _noise(100_000)
    assert all(np.shares_memory(w.samples, samples) for w in segments.split(samples, 2.0))
