"""predictor.transducer: greedy RNN-T, against the loop that asks every network at every step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.transducer import search

WIDTH, TOKENS = 5, 7  # the last token is the blank
BLANK = TOKENS - 1
ALLOWED = (*range(100, 100 + BLANK), 999)


class Small:
    """A transducer of random matrices whose prediction depends on all tokens so far; it counts its calls."""

    blank_id = BLANK

    def __init__(self, seed, blank):
        random = np.random.default_rng(seed)
        self.tokens = random.normal(0, 2, (TOKENS, WIDTH)).astype(np.float32)
        self.weights = random.normal(0, 1, (WIDTH, TOKENS)).astype(np.float32)
        self.bias = np.zeros(TOKENS, np.float32)
        self.bias[BLANK] = blank
        self.predictions = self.joins = 0

    def start(self, encoded):
        return encoded * 2

    def predict(self, token, state):
        self.predictions += 1
        known = np.zeros(WIDTH, np.float32) if token is None else np.tanh(state[0] + self.tokens[token])
        return known, (known,)

    def join(self, frames, prediction, language):
        assert language == "hi"
        self.joins += 1
        return np.tanh(frames + prediction) @ self.weights + self.bias


def _slowly(encoded, transducer, max_symbols):
    """Frame by frame and symbol by symbol, with nothing remembered."""
    history, found = [], []
    for frame in range(len(encoded)):
        for _ in range(max_symbols):
            prediction, state = transducer.predict(None, None)
            for token in history:
                prediction, state = transducer.predict(token, state)
            scores = transducer.join(transducer.start(encoded)[frame : frame + 1], prediction, "hi")[0].astype(float)
            token = int(scores.argmax())
            if token == BLANK:
                break
            history.append(token)
            found.append((ALLOWED[token], frame, math.exp(scores[token]) / sum(map(math.exp, scores))))
    return found


def _frames(count, seed):
    return np.random.default_rng(seed).normal(0, 1, (count, WIDTH)).astype(np.float32)


def _found(encoded, transducer, max_symbols=10):
    hypothesis = search(encoded, transducer, "hi", ALLOWED, max_symbols)
    return hypothesis, list(zip(hypothesis.tokens.tolist(), hypothesis.starts.tolist(), strict=True))


@settings(deadline=None)
@given(
    count=st.integers(0, 50),
    seed=st.integers(0, 10_000),
    blank=st.sampled_from([-9.0, 0.0, 1.0, 2.0, 4.0, 9.0]),
    max_symbols=st.integers(1, 10),
)
def test_it_finds_what_the_loop_finds(count, seed, blank, max_symbols):
    encoded = _frames(count, seed)
    hypothesis, found = _found(encoded, Small(seed, blank), max_symbols)
    expected = _slowly(encoded, Small(seed, blank), max_symbols)
    assert found == [(token, frame) for token, frame, _ in expected]
    np.testing.assert_allclose(hypothesis.confidences, [confidence for _, _, confidence in expected], rtol=1e-4)


@settings(deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 10_000), blank=st.sampled_from([0.0, 1.0, 2.0, 4.0]))
def test_the_prediction_network_is_asked_once_a_token_and_frames_are_joined_many_at_once(count, seed, blank):
    transducer = Small(seed, blank)
    hypothesis, _ = _found(_frames(count, seed), transducer)
    assert transducer.predictions <= 1 + len(hypothesis.tokens)
    assert transducer.joins <= 1 + len(hypothesis.tokens) + math.ceil(count / 4)


def test_long_silence_takes_few_calls():
    transducer = Small(0, blank=99.0)
    hypothesis, _ = _found(_frames(400, 0), transducer)
    assert not len(hypothesis.tokens)
    assert transducer.joins <= 3 + math.ceil(400 / 32)


@pytest.mark.parametrize("max_symbols", [1, 3, 10])
def test_a_frame_that_never_falls_silent_says_so_many_symbols_and_the_next_one_goes_on(max_symbols):
    hypothesis, _ = _found(_frames(6, 0), Small(0, blank=-99.0), max_symbols)
    assert hypothesis.starts.tolist() == [frame for frame in range(6) for _ in range(max_symbols)]


def test_every_token_lasts_a_frame_and_arrays_are_of_one_kind():
    hypothesis, _ = _found(_frames(40, 3), Small(3, blank=1.0))
    assert len(hypothesis.tokens) > 5
    assert np.array_equal(hypothesis.ends, hypothesis.starts + 1)
    assert (np.diff(hypothesis.starts) >= 0).all()
    assert ((hypothesis.confidences > 0) & (hypothesis.confidences <= 1)).all()
    kinds = [array.dtype for array in (hypothesis.tokens, hypothesis.starts, hypothesis.ends, hypothesis.confidences)]
    assert kinds == [*([np.int64] * 3), np.float32]


def test_nothing_heard_is_nothing_said():
    hypothesis, _ = _found(_frames(0, 0), Small(0, 0.0))
    assert [len(array) for array in (hypothesis.tokens, hypothesis.starts, hypothesis.confidences)] == [0, 0, 0]
    assert hypothesis.tokens.dtype == np.int64
