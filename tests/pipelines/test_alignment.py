"""pipelines.alignment: against every path there is, against best_path, and against torchaudio where it loads."""

from itertools import groupby, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import alignment
from pipelines.errors import Permanent
from predictor.engine import Emission
from predictor.search import best_path

BLANK = 0


def _log_probs(seed, frames, columns=4):
    logits = np.random.default_rng(seed).normal(0, 2, (frames, columns))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _collapsed(path):
    return [int(token) for token, _ in groupby(path) if token != BLANK]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.lists(st.integers(1, 3), max_size=4))
def test_the_path_is_the_likeliest_of_all_that_say_the_tokens(seed, frames, tokens):
    log_probs = _log_probs(seed, frames)
    scores = [
        float(log_probs[np.arange(frames), path].sum())
        for path in product(range(4), repeat=frames)
        if _collapsed(path) == tokens
    ]
    if not scores:
        with pytest.raises(Permanent, match="frames"):
            alignment.viterbi(log_probs, tokens, BLANK)
        return
    path = alignment.viterbi(log_probs, tokens, BLANK)
    assert _collapsed(path) == tokens
    assert float(log_probs[np.arange(frames), path].sum()) == pytest.approx(max(scores), abs=1e-4)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_of_what_the_best_path_says_the_times_are_the_best_paths(seed, frames):
    log_probs = _log_probs(seed, frames, 6)
    hypothesis = best_path(Emission(log_probs), range(6), BLANK)
    path = alignment.viterbi(log_probs, hypothesis.tokens.tolist(), BLANK)
    spans = [(token, start, end) for token, start, end in _spans(path)]
    assert spans == list(zip(hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True))


def _spans(path):
    bounds = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    return [(path[a], a, b) for a, b in pairwise(bounds) if path[a] != BLANK]


def test_torchaudio_aligns_as_we_do():
    name, align = alignment.aligner()
    if name != "torchaudio":
        pytest.skip("torchaudio does not load beside this torch")
    for seed in range(50):
        log_probs = _log_probs(seed, 30, 8)
        tokens = best_path(Emission(log_probs), range(8), BLANK).tokens.tolist()[:10]
        np.testing.assert_array_equal(align(log_probs, tokens, BLANK), alignment.viterbi(log_probs, tokens, BLANK))
