"""What augmentation may do to an utterance, and what it may not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import augment as effects
from demo.augment import MEL_MASK_BINS, MEL_MASKS, TIME_MASK_SHARE, TIME_MASKS, augment, mask
from predictor.features import SAMPLE_RATE_HZ

PAUSE_SAMPLES = SAMPLE_RATE_HZ // 5  # the most that is added at either end
LOUDEST, QUIETEST = 1.0, 0.1  # 0 to 20 dB down

seeds = st.integers(0, 2**32)
lengths = st.integers(400, 2 * SAMPLE_RATE_HZ)


def tone(length: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """A second of 300 Hz at half of full scale: louder than any noise that is added, within any telephone."""
    return (0.5 * np.sin(2 * np.pi * 300 * np.arange(length) / SAMPLE_RATE_HZ)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


def above(samples: np.ndarray, hz: float) -> float:
    """The part of the energy that lies above `hz`."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    return float(spectrum[int(len(samples) * hz / SAMPLE_RATE_HZ) :].sum() / spectrum.sum())


@settings(max_examples=60, deadline=None)
@given(seed=seeds, length=lengths)
def test_an_augmented_utterance_is_finite_float32_and_at_most_two_fifths_of_a_second_longer(seed, length):
    samples = augment(tone(length), np.random.default_rng(seed))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert np.isfinite(samples).all()
    assert length <= len(samples) < length + 2 * PAUSE_SAMPLES


@settings(max_examples=60, deadline=None)
@given(seed=seeds)
def test_the_level_falls_by_at_most_twenty_decibels_and_rises_by_no_more_than_a_room_and_noise_add(seed):
    before = tone()
    after = augment(before, np.random.default_rng(seed))
    # The energy of the utterance, pauses left out by taking sums: a gain of 0 to -20 dB; a room's tail has at most a
    # quarter of the direct path's energy, and in the worst case adds to its amplitude; noise adds at most a tenth.
    ratio = np.sqrt(power(after) * len(after) / (power(before) * len(before)))
    assert QUIETEST * 0.5 <= ratio <= LOUDEST * 1.5 * np.sqrt(1.1)


def test_the_gain_covers_its_whole_range():
    ratios = [np.abs(augment(tone(), np.random.default_rng(seed))).max() / 0.5 for seed in range(200)]
    assert min(ratios) < 0.13
    assert max(ratios) > 0.9


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_the_same_seed_augments_the_same(seed):
    first, second = (augment(tone(), np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)


def test_different_seeds_augment_differently():
    assert len({augment(tone(), np.random.default_rng(seed)).tobytes() for seed in range(50)}) == 50


def test_the_utterance_given_is_left_as_it_was():
    samples = tone()
    for seed in range(20):
        augment(samples, np.random.default_rng(seed))
    assert np.array_equal(samples, tone())


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_edges_are_silent_and_the_utterance_between_them_is_whole(seed):
    samples = tone()[1:]  # the first sample of a sine is a zero too
    padded = effects._edges(samples, np.random.default_rng(seed))
    start = int(np.flatnonzero(padded)[0])
    assert start < PAUSE_SAMPLES
    assert np.array_equal(padded[start : start + len(samples)], samples)
    assert not padded[start + len(samples) :].any()


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_noise_lies_ten_to_forty_decibels_below_the_speech(seed):
    noisy = effects._noise(tone(), np.random.default_rng(seed))
    decibels = 10 * np.log10(power(tone()) / power(noisy - tone()))
    assert 9.9 < decibels < 40.1


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_room_keeps_the_length_and_adds_a_tail(seed):
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[0] = 1
    wet = effects._reverberate(click, np.random.default_rng(seed))
    assert len(wet) == len(click)
    assert wet[0] == pytest.approx(1, abs=1e-5)
    assert 0.005 < float(np.sum(wet[1:] ** 2)) < 0.26  # tail: 0.1 to 0.5 of the direct path's amplitude
    assert np.abs(wet[int(0.4 * SAMPLE_RATE_HZ) :]).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_telephone_has_nothing_above_four_kilohertz_and_all_below_three(seed):
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ).astype(np.float32)
    heard = effects._telephone(noise, np.random.default_rng(seed))
    assert heard.dtype == np.float32
    assert above(heard, 4_000) < 1e-9
    before, after = (np.fft.rfft(samples)[:3_000] for samples in (noise, heard))
    assert np.allclose(before, after, atol=1e-2)


def frames(length: int) -> np.ndarray:
    """Log-mel frames [80, T] of which no two values are alike and none is the mean."""
    return (np.arange(80 * length, dtype=np.float32) / (80 * length) + 7).reshape(80, length)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, length=st.integers(1, 400))
def test_a_mask_blanks_at_most_its_bands_and_leaves_the_rest(seed, length):
    before = frames(length)
    after = mask(before.copy(), np.random.default_rng(seed))
    assert (after.dtype, after.shape) == (np.float32, before.shape)
    changed = after != before
    rows, columns = changed.all(1).sum(), changed.all(0).sum()
    most_columns = TIME_MASKS * int(length * TIME_MASK_SHARE)
    if most_columns < length and rows < 80:  # every value that changed lies in a band that changed as a whole
        assert changed.sum() == rows * length + columns * 80 - rows * columns
    assert rows <= MEL_MASKS * MEL_MASK_BINS + (80 if columns == length else 0)
    assert columns <= most_columns
    assert np.isclose(after[changed], before.mean(), rtol=1e-6).all()


def test_masks_reach_their_widest_and_every_bin():
    hidden = np.zeros(80, int)
    widest = 0
    for seed in range(1000):
        band = (mask(frames(10), np.random.default_rng(seed)) != frames(10)).all(1)
        hidden += band
        widest = max(widest, int(band.sum()))
    assert widest == MEL_MASK_BINS
    assert hidden.min() > 0


def test_the_same_seed_masks_the_same():
    first, second = (mask(frames(200), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)
