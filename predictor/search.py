"""Emissions to a Hypothesis: which tokens were said, and when. CTC best path (Graves et al. 2006).

Repeats are collapsed first and blanks dropped second: the other order loses every doubled token
("9 9 _ 9" is "9 9", not "9").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Vocabulary
from predictor.engine import Emission

Decoding = Literal["ctc", "rnnt"]
LogProbs = NDArray[np.float32]

_REMEMBERED = 256  # tuples of ids: ten models of 22 languages
_known: dict[int, tuple[Sequence[int], NDArray[np.int64]]] = {}  # by identity: to hash a tuple costs half of it


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Tokens in order. Token i was emitted from frame `starts[i]` up to, not including, `ends[i]`;
    `confidences[i]` is its highest probability there, within (0, 1]."""

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    confidences: NDArray[np.float32]


def best_path(emission: Emission, allowed: Sequence[int], blank_id: int, repeat_gap_frames: int = 0) -> Hypothesis:
    """The most probable token of each frame, collapsed.

    Only `allowed` tokens compete (they must include the blank), and share the whole probability among themselves.
    Emissions of one token with at most `repeat_gap_frames` blank frames between them count as one (0: as CTC defines).
    """
    best, peaks = _best(emission, _ids(allowed), blank_id)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    ends = np.append(starts[1:], len(best))
    confidences = np.maximum.reduceat(peaks, starts) if len(starts) else peaks
    tokens = best[starts]
    spoken = tokens != blank_id
    hypothesis = Hypothesis(tokens[spoken], starts[spoken], ends[spoken], confidences[spoken].astype(np.float32))
    return _merged(hypothesis, repeat_gap_frames) if repeat_gap_frames else hypothesis


def competing(emission: Emission, allowed: Sequence[int], blank_id: int) -> tuple[NDArray[np.int64], LogProbs]:
    """The ids of the tokens that compete, in order, and their log-probabilities [T', len(ids)] among all tokens.

    Where an emission knows the likeliest of each frame alone, tokens that are in no frame are left out, and those that
    are not in this one are at -inf; a frame that knows none of the allowed ones is a blank.
    """
    ids = _ids(allowed)
    if emission.tokens is None:
        return ids, emission.log_probs if len(ids) == emission.log_probs.shape[1] else emission.log_probs[:, ids]
    known = _allowed(emission.tokens, ids)
    seen = np.union1d(emission.tokens[known], blank_id)
    scores = np.full((len(known), len(seen)), -np.inf, np.float32)
    scores[~known.any(axis=1), np.searchsorted(seen, blank_id)] = 0.0
    scores[np.nonzero(known)[0], np.searchsorted(seen, emission.tokens[known])] = emission.log_probs[known]
    return seen, scores


def log_total(scores: LogProbs) -> NDArray[np.float32]:
    """log sum exp of each row [T, K], [T]."""
    top = scores.max(axis=1)
    return np.asarray(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)))


def _best(emission: Emission, ids: NDArray[np.int64], blank_id: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best of these ids in each frame, [T'], and its probability."""
    if not len(emission.log_probs):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if emission.tokens is not None:
        known = _allowed(emission.tokens, ids)
        first = known.argmax(axis=1)[:, None]
        best = np.take_along_axis(emission.tokens, first, axis=1)[:, 0].astype(np.int64)
        peaks = np.exp(np.take_along_axis(emission.log_probs, first, axis=1)[:, 0])
        return np.where(known.any(axis=1), best, blank_id), peaks
    scores = emission.log_probs if len(ids) == emission.log_probs.shape[1] else emission.log_probs[:, ids]
    return ids[scores.argmax(axis=1)], np.exp(scores.max(axis=1) - log_total(scores))


def _ids(allowed: Sequence[int]) -> NDArray[np.int64]:
    """The ids in order, each once. A vocabulary's tuples are remembered: 50,000 ids take 12 ms to become an array."""
    if type(allowed) is not tuple:
        return np.unique(np.asarray(allowed, dtype=np.int64))
    known = _known.get(id(allowed))
    if known is None or known[0] is not allowed:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        known = _known[id(allowed)] = allowed, np.unique(np.asarray(allowed, dtype=np.int64))
    return known[1]


def _allowed(tokens: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    if len(ids) == ids[-1] + 1 and tokens.max(initial=0) <= ids[-1]:  # all that there are
        return np.ones(tokens.shape, np.bool_)
    table = np.zeros(max(int(tokens.max(initial=0)), int(ids[-1])) + 1, np.bool_)
    table[ids] = True
    return table[tokens]


def _merged(hypothesis: Hypothesis, gap_frames: int) -> Hypothesis:
    """Repeats of a token that follow it too soon to be spoken again are part of it."""
    tokens, starts, ends = hypothesis.tokens, hypothesis.starts, hypothesis.ends
    echo = (tokens[1:] == tokens[:-1]) & (starts[1:] - ends[:-1] <= gap_frames)
    first = np.flatnonzero(np.insert(~echo, 0, values=True))[: len(tokens)]
    if len(first) == len(tokens):
        return hypothesis
    confidences = np.maximum.reduceat(hypothesis.confidences, first)
    return Hypothesis(tokens[first], starts[first], np.maximum.reduceat(ends, first), confidences)


def without_prefix(hypothesis: Hypothesis, prefix: Sequence[int]) -> Hypothesis:
    """The hypothesis from the first token on that is not of `prefix`, whose tokens may each be there once, in order."""
    count = 0
    for token in prefix:
        count += count < len(hypothesis.tokens) and hypothesis.tokens[count] == token
    if not count:
        return hypothesis
    return Hypothesis(
        hypothesis.tokens[count:], hypothesis.starts[count:], hypothesis.ends[count:], hypothesis.confidences[count:]
    )


def identify(emission: Emission, vocabulary: Vocabulary) -> list[str]:
    """The languages, the likeliest first; none where nothing was said.

    By the mean log-probability of the tokens of a language's own best path, among its own tokens: where a network was
    trained within each language alone, its scores of one say nothing against those of another. A language that is
    silent where others speak is confident of little; it comes after all that say half of what is usual, or more.
    """
    best, _ = _best(emission, np.arange(len(vocabulary.tokens)), vocabulary.blank_id)
    if not (best != vocabulary.blank_id).any():
        return []
    if len(vocabulary.languages) == 1:
        return list(vocabulary.languages)
    paths = {
        code: best_path(emission, ids, vocabulary.blank_id).confidences for code, ids in vocabulary.languages.items()
    }
    usual = np.median([len(path) for path in paths.values()])
    certainty = {code: float(np.log(path).mean()) if len(path) else -np.inf for code, path in paths.items()}
    return sorted(paths, key=lambda code: (len(paths[code]) < usual / 2, -certainty[code]))
