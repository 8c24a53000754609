"""predictor.segments: windows that together are the recording, cut in pauses, overlapping where nobody pauses."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import segments
from predictor.features import SAMPLE_RATE_HZ
from predictor.segments import MIN_PAUSE_SECONDS, OVERLAP_SECONDS

SECOND = SAMPLE_RATE_HZ


def _noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * SECOND))).astype(np.float32)


@cache
def _voice(seed: int) -> np.ndarray:
    """40 s of syllables: a buzz of 120 Hz, loud and soft six times a second, with closures of up to 0.1 s."""
    rng = np.random.default_rng(seed)
    time = np.arange(40 * SECOND) / SECOND
    voice = sum(np.sin(2 * np.pi * 120 * k * time + k * k) / k for k in range(1, 20))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 6 * time + rng.uniform(0, 6))
    samples = 0.2 * voice * loudness
    for at in np.arange(0.5, 39.8, 0.9):
        samples[round(at * SECOND) : round((at + rng.uniform(0.03, 0.1)) * SECOND)] = 0
    return samples.astype(np.float32)


def _speech(seconds: float, seed: int = 0) -> np.ndarray:
    return np.resize(_voice(seed), round(seconds * SECOND))


def _with_pauses(seconds: float, pauses: dict[float, float], seed: int = 0) -> np.ndarray:
    """Speech with a pause of so many seconds at each of the given times."""
    samples = _speech(seconds, seed)
    for at, length in pauses.items():
        samples[round(at * SECOND) : round((at + length) * SECOND)] = 0
    return samples


def _spans(windows):
    """Where windows begin and end, in samples."""
    return [(round(w.start_seconds * SECOND), round(w.start_seconds * SECOND) + len(w.samples)) for w in windows]


def _cuts(samples, limit):
    """Where windows that do not overlap begin, in seconds."""
    return [w.start_seconds for w in segments.split(samples, limit)[1:] if not w.overlap_seconds]


def _check(samples, limit, windows):
    spans = _spans(windows)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(samples)
    for (start, end), window in zip(spans, windows, strict=True):
        assert 1 <= end - start <= int(limit * SECOND)
        assert np.array_equal(window.samples, samples[start:end])
    for ((before, heard), (start, _)), window in zip(pairwise(spans), windows[1:], strict=True):
        assert before < start <= heard
        assert window.overlap_seconds == pytest.approx((heard - start) / SECOND)
    assert windows[0].overlap_seconds == 0


@st.composite
def _anything(draw):
    """Pieces of speech, noise, hum, constants, clicks and silence, each of its own loudness."""
    pieces = []
    for kind in draw(st.lists(st.sampled_from(["speech", "noise", "hum", "constant", "silence", "click"]), min_size=1)):
        seconds, seed = draw(st.floats(0.001, 8.0)), draw(st.integers(0, 9))
        count = max(1, round(seconds * SECOND))
        time = np.arange(count) / SECOND
        piece = {
            "speech": lambda s=seconds, seed=seed: _speech(s, seed),
            "noise": lambda s=seconds, seed=seed: _noise(s, 1, seed),
            "hum": lambda t=time: np.sin(2 * np.pi * 50 * t),
            "constant": lambda n=count: np.ones(n),
            "silence": lambda n=count: np.zeros(n),
            "click": lambda n=count: np.eye(1, n, n // 2)[0],
        }[kind]()
        pieces.append(piece * 10 ** draw(st.floats(-5, 0)))
    return np.concatenate(pieces).astype(np.float32) if sum(map(len, pieces)) else np.zeros(1, np.float32)


@settings(max_examples=30, deadline=None)
@given(samples=_anything(), limit=st.sampled_from([1.0, 1.7, 3.0, 15.0, 30.0]))
def test_windows_cover_every_sample_in_order_and_say_what_they_share(samples, limit):
    _check(samples, limit, segments.split(samples, limit))


@given(length=st.integers(1, 1_000), limit=st.integers(1, 400))
def test_windows_of_less_than_a_step_cover_every_sample_too(length, limit):
    samples = _noise(length / SECOND)
    _check(samples, limit / SECOND, segments.split(samples, limit / SECOND))


@pytest.mark.parametrize("seconds", [0.001, 1.0, 9.999, 10.0])
def test_a_recording_within_the_limit_in_which_nobody_pauses_is_one_window(seconds):
    samples = _speech(seconds)
    (window,) = segments.split(samples, 10.0)
    assert (window.start_seconds, window.overlap_seconds) == (0, 0)
    assert np.array_equal(window.samples, samples)


@settings(max_examples=25, deadline=None)
@given(
    pause=st.tuples(st.floats(16.0, 28.0), st.floats(0.3, 2.0)),
    gain_db=st.sampled_from([0, -20, -50]),
    noise_db=st.sampled_from([None, -40, -20]),
    offset=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2),
)
def test_a_pause_is_found_in_quiet_and_noisy_and_offset_recordings(pause, gain_db, noise_db, offset, seed):
    at, length = pause
    samples = _with_pauses(32, {at: length}, seed)
    if noise_db is not None:
        samples = samples + _noise(32, float(samples.std()) * 10 ** (noise_db / 20), seed)
    samples = (samples * 10 ** (gain_db / 20) + offset).astype(np.float32)
    cuts = _cuts(samples, 30.0)
    assert cuts
    assert all(at + 0.05 <= cut <= at + length - 0.05 for cut in cuts)


def test_hum_in_the_pauses_does_not_hide_them():
    time = np.arange(40 * SECOND) / SECOND
    hum = 0.1 * (np.sin(2 * np.pi * 50 * time) + np.sin(2 * np.pi * 100 * time) / 2)
    cuts = _cuts((_with_pauses(40, {20.0: 0.6}) + hum).astype(np.float32), 30.0)
    assert cuts == [pytest.approx(20.4, abs=0.1)]


def test_a_pause_is_cut_shortly_before_the_next_word():
    assert _cuts(_with_pauses(10, {4.0: 0.6}), 30.0) == [pytest.approx(4.4, abs=0.05)]


def test_a_long_silence_is_a_window_of_its_own_with_a_little_left_to_the_words_before_and_after():
    cuts = _cuts(_with_pauses(20, {4.0: 5.0}), 30.0)
    assert cuts == [pytest.approx(4.4, abs=0.05), pytest.approx(8.8, abs=0.05)]


def test_silence_before_the_first_word_is_cut_off():
    assert _cuts(_with_pauses(10, {0.0: 3.0}), 30.0) == [pytest.approx(2.8, abs=0.05)]


def test_every_long_pause_is_cut_and_short_ones_only_where_the_limit_asks_for_it():
    pauses = {3.0: 0.3, 6.0: 0.7, 9.0: 0.3, 12.0: 0.7, 16.0: 0.3, 19.0: 0.4, 24.0: 0.3}
    samples = _with_pauses(26, pauses)
    assert _cuts(samples, 30.0) == [pytest.approx(6.5, abs=0.05), pytest.approx(12.5, abs=0.05)]
    assert _cuts(samples, 8.0)[2:] == [pytest.approx(19.2, abs=0.06)]


def test_a_long_pause_in_the_first_second_of_speech_ends_no_window():
    assert _cuts(_with_pauses(10, {0.4: 0.5}), 30.0) == []


@pytest.mark.parametrize("limit", [1.0, 4.0, 15.0, 30.0])
@pytest.mark.parametrize("sound", [_speech, _noise], ids=["speech", "noise"])
def test_where_nobody_pauses_windows_overlap(sound, limit):
    samples = sound(4 * limit + 1)
    windows = segments.split(samples, limit)
    _check(samples, limit, windows)
    least = min(OVERLAP_SECONDS, 3 / 8 * limit) - 0.011
    assert all(least <= w.overlap_seconds <= limit / 2 for w in windows[1:])
    assert all(len(w.samples) > limit * SECOND * 0.8 for w in windows[:-1])


def test_closures_of_plosives_are_no_pauses():
    assert _cuts(_speech(100), 10.0) == []


def test_a_click_in_a_silent_recording_is_no_speech():
    samples = np.zeros(20 * SECOND, np.float32)
    samples[5 * SECOND] = 1.0
    assert segments.pause_end(samples, 0.5) is None


def test_samples_are_not_copied():
    samples = _speech(100)
    assert all(np.shares_memory(w.samples, samples) for w in segments.split(samples, 10.0))


@settings(max_examples=25, deadline=None)
@given(at=st.floats(1.0, 6.0), length=st.floats(0.4, 3.0), after=st.sampled_from([0.0, 0.3, 2.0]))
def test_a_buffer_is_cut_in_the_middle_of_its_last_pause(at, length, after):
    samples = _with_pauses(at + length + after, {0.5: 0.4, at: length})
    assert segments.pause_end(samples, 0.3) == pytest.approx((at + length / 2) * SECOND, abs=0.06 * SECOND)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        np.zeros(100, np.float32),
        np.zeros(5 * SECOND, np.float32),
        _noise(5),
        _speech(5),
        _with_pauses(5, {0.0: 2.0}),
        _with_pauses(5, {2.0: 0.4}),
    ],
    ids=["nothing", "less than a step", "silence", "noise", "speech", "silence, then speech", "a shorter pause"],
)
def test_a_buffer_without_a_pause_after_speech_is_not_cut(samples):
    assert segments.pause_end(samples, 0.6) is None


def test_a_pause_too_short_to_tell_from_a_plosive_does_not_count_whatever_is_asked_for():
    samples = _with_pauses(5, {3.0: MIN_PAUSE_SECONDS - 0.05})
    assert segments.pause_end(samples, 0.0) is None


def test_a_long_dictation_is_cut_only_as_soon_as_its_speaker_has_been_silent_long_enough():
    samples = _with_pauses(6, {4.0: 2.0})
    heard = {length: segments.pause_end(samples[: round(length * SECOND)], 0.6) for length in (3.0, 4.5, 4.7, 6.0)}
    assert [cut is not None for cut in heard.values()] == [False, False, True, True]
