"""predictor.search: the best CTC path, against an implementation that is slow and obvious."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.bundle import Vocabulary
from predictor.engine import Emission
from predictor.search import Hypothesis, best_path, competing, identify, without_prefix

TOKENS = 7
BLANK = 0


def _log_probs(path, seed=0, peak=6.0):
    """Log-probabilities [T, TOKENS] in which token path[t] is the most probable of frame t, by a margin."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(path), TOKENS))
    logits[np.arange(len(path)), path] += peak
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _slowly(log_probs, allowed, blank_id):
    """The definition: per frame the best allowed token, runs collapsed, blanks dropped; (token, start, end, peak)."""
    frames = []
    for t, row in enumerate(np.exp(log_probs.astype(np.float64))):
        token = max(allowed, key=lambda i: row[i])
        frames.append((t, token, row[token] / sum(row[i] for i in allowed)))
    runs = [list(run) for _, run in groupby(frames, key=lambda frame: frame[1])]
    return [(r[0][1], r[0][0], r[-1][0] + 1, max(f[2] for f in r)) for r in runs if r[0][1] != blank_id]


@st.composite
def _searches(draw):
    runs = draw(st.lists(st.tuples(st.integers(0, TOKENS - 1), st.integers(1, 4)), max_size=12))
    path = [token for token, count in runs for _ in range(count)]
    log_probs = _log_probs(path, draw(st.integers(0, 999)), draw(st.sampled_from([0.0, 1.0, 6.0, 60.0])))
    blank = draw(st.integers(0, TOKENS - 1))
    others = draw(st.sets(st.integers(0, TOKENS - 1), min_size=1))
    return log_probs, draw(st.permutations(sorted(others | {blank}))), blank


@given(_searches())
def test_the_path_is_the_one_of_the_definition(search):
    found = best_path(Emission(search[0]), *search[1:])
    expected = _slowly(*search)
    assert list(zip(found.tokens, found.starts, found.ends, strict=True)) == [e[:3] for e in expected]
    np.testing.assert_allclose(found.confidences, [e[3] for e in expected], rtol=1e-4)


@given(_searches())
def test_tokens_are_allowed_and_spoken_spans_in_order_and_confidences_probabilities(search):
    log_probs, allowed, blank = search
    found = best_path(Emission(log_probs), allowed, blank)
    assert set(found.tokens.tolist()) <= set(allowed) - {blank}
    assert np.all(found.starts < found.ends)
    assert np.all(found.ends[:-1] <= found.starts[1:])
    assert np.all((found.confidences > 0) & (found.confidences <= 1))
    assert (found.starts.min(initial=0), found.ends.max(initial=0)) >= (0, 0)
    assert found.ends.max(initial=0) <= len(log_probs)
    assert [a.dtype for a in (found.tokens, found.starts, found.ends, found.confidences)] == [
        *([np.int64] * 3),
        np.float32,
    ]


@pytest.mark.parametrize(
    ("path", "tokens", "starts", "ends"),
    [
        ([3, 3, 0, 3], [3, 3], [0, 3], [2, 4]),  # a doubled token survives: repeats first, blanks second
        ([3, 3, 3], [3], [0], [3]),
        ([0, 3, 4, 0], [3, 4], [1, 2], [2, 3]),
        ([0, 0], [], [], []),
        ([3], [3], [0], [1]),
        ([], [], [], []),
    ],
)
def test_repeats_are_collapsed_before_blanks_are_dropped(path, tokens, starts, ends):
    found = best_path(Emission(_log_probs(path)), range(TOKENS), BLANK)
    assert (found.tokens.tolist(), found.starts.tolist(), found.ends.tolist()) == (tokens, starts, ends)


def test_a_token_that_is_not_allowed_gives_its_place_to_the_best_that_is():
    log_probs = np.log(np.array([[0.1, 0.6, 0.3]], dtype=np.float32))
    found = best_path(Emission(log_probs), [0, 2], BLANK)
    assert found.tokens.tolist() == [2]
    assert found.confidences == pytest.approx([0.75])  # of what the allowed share


def test_the_order_in_which_all_tokens_are_allowed_does_not_matter():
    log_probs = _log_probs([3, 0, 4, 4, 5])
    assert best_path(Emission(log_probs), [6, 5, 4, 3, 2, 1, 0], BLANK).tokens.tolist() == [3, 4, 5]


def test_confidence_is_the_highest_probability_of_the_run():
    log_probs = np.log(np.array([[0.4, 0.6], [0.1, 0.9], [0.3, 0.7]], dtype=np.float32))
    assert best_path(Emission(log_probs), range(2), BLANK).confidences == pytest.approx([0.9])


LANGUAGES = Vocabulary(("_", " ", "a", "b", "ư", "क", "ख"), BLANK, {"vi": (0, 1, 2, 3, 4), "hi": (0, 1, 5, 6)})


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ([2, 1, 4], "vi"),
        ([5, 1, 6], "hi"),
        ([5, 0, 5, 2], "hi"),
        ([2, 2, 2, 2, 2, 0, 5, 6], "hi"),  # tokens count, not frames
        ([1, 5, 1, 0, 6], "hi"),  # what both have says nothing
        ([0, 0, 0], None),
        ([], None),
    ],
)
def test_the_likeliest_language_is_the_one_whose_tokens_are_heard_and_there_is_none_for_silence(path, language):
    likeliest = identify(Emission(_log_probs(path)), LANGUAGES)
    assert likeliest[:1] == ([language] if language else [])
    assert sorted(likeliest) in ([], ["hi", "vi"])
    assert identify(_likeliest(_log_probs(path), TOKENS), LANGUAGES) == likeliest


def test_an_echo_within_the_gap_is_part_of_its_token_and_a_repeat_beyond_it_is_not():
    blank, a, b = 0, 1, 2
    path = [a, blank, a, a, blank, blank, a, b, blank, b]
    log_probs = np.log(np.full((len(path), 3), 0.1, np.float32))
    log_probs[np.arange(len(path)), path] = np.log(0.8)
    exact = best_path(Emission(log_probs), range(3), blank)
    assert exact.tokens.tolist() == [a, a, a, b, b]
    merged = best_path(Emission(log_probs), range(3), blank, repeat_gap_frames=1)
    assert merged.tokens.tolist() == [a, a, b]
    assert merged.starts.tolist() == [0, 6, 7]
    assert merged.ends.tolist() == [4, 7, 10]
    assert best_path(Emission(log_probs[:0]), range(3), blank, repeat_gap_frames=1).tokens.tolist() == []


# Emissions that know the likeliest tokens of each frame alone


def _likeliest(log_probs, count):
    tokens = np.argsort(-log_probs, axis=1, kind="stable")[:, :count].astype(np.int32)
    return Emission(np.take_along_axis(log_probs, tokens, axis=1), tokens)


@given(_searches(), st.integers(1, TOKENS))
def test_the_likeliest_tokens_are_enough_for_the_best_path_of_all(search, count):
    log_probs, _, blank = search
    found = best_path(_likeliest(log_probs, count), range(TOKENS), blank)
    whole = best_path(Emission(log_probs), range(TOKENS), blank)
    assert (found.tokens.tolist(), found.starts.tolist()) == (whole.tokens.tolist(), whole.starts.tolist())
    np.testing.assert_allclose(found.confidences, whole.confidences, rtol=1e-4)


@given(_searches())
def test_of_all_tokens_in_another_order_the_path_is_the_same(search):
    log_probs, allowed, blank = search
    found = best_path(_likeliest(log_probs, TOKENS), allowed, blank)
    whole = best_path(Emission(log_probs), allowed, blank)
    assert found.tokens.tolist() == whole.tokens.tolist()


def test_a_frame_that_knows_no_allowed_token_is_a_blank():
    emission = Emission(np.log(np.float32([[0.9], [0.8]])), np.int32([[3], [4]]))
    assert best_path(emission, [BLANK, 4], BLANK).tokens.tolist() == [4]
    ids, scores = competing(emission, [BLANK, 4], BLANK)
    assert ids.tolist() == [BLANK, 4]
    assert scores.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("tokens", "left"),
    [
        ([5, 6, 1], [1]),
        ([5, 1], [1]),
        ([6, 1], [1]),
        ([6, 5, 1], [5, 1]),
        ([1, 5, 6], [1, 5, 6]),
        ([5, 6], []),
        ([], []),
    ],
)
def test_a_prefix_is_taken_away_by_its_ids_each_of_them_once_and_in_order(tokens, left):
    count = np.arange(len(tokens))
    hypothesis = Hypothesis(np.array(tokens, np.int64), count, count + 1, np.ones(len(tokens), np.float32))
    assert without_prefix(hypothesis, (5, 6)).tokens.tolist() == left


def test_a_language_that_is_trained_by_itself_is_judged_by_itself():
    """Two languages with outputs of their own: a constant added to one's says nothing about which was spoken."""
    vocabulary = Vocabulary(("a", "b", "c", "d", ""), 4, {"xx": (0, 1, 4), "yy": (2, 3, 4)})
    logits = np.zeros((6, 5), np.float32)
    logits[[0, 2, 4], [0, 1, 0]] = 6.0  # sure of its tokens
    logits[:, [2, 3]] += 8.0  # likelier than anything, and unsure which
    logits[:, 4] = [0, 4, 0, 4, 0, 4]
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    assert identify(Emission(log_probs), vocabulary) == ["xx", "yy"]


def test_a_language_that_says_next_to_nothing_comes_after_those_that_speak():
    vocabulary = Vocabulary(("a", "b", "c", ""), 3, {"xx": (0, 3), "yy": (1, 3), "zz": (2, 3)})
    logits = np.full((12, 4), -6.0, np.float32)
    logits[::2, [0, 1]] = [1.5, 1.0]
    logits[0, 2] = 9.0  # one token, and sure of it
    logits[:, 3] = 0.0
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    assert identify(Emission(log_probs), vocabulary) == ["xx", "yy", "zz"]
