"""Emissions to a Hypothesis: which tokens were said, and when. CTC best path (Graves et al. 2006).

Repeats are collapsed first and blanks dropped second: the other order loses every doubled token
("9 9 _ 9" is "9 9", not "9").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Vocabulary

LogProbs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Tokens in order. Token i was emitted from frame `starts[i]` up to, not including, `ends[i]`;
    `confidences[i]` is its highest probability there, within (0, 1]."""

    tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    confidences: NDArray[np.float32]


def best_path(log_probs: LogProbs, allowed: Sequence[int], blank_id: int, repeat_gap_frames: int = 0) -> Hypothesis:
    """The most probable token of each frame, collapsed. log_probs [T, tokens], log-probabilities.

    Only `allowed` tokens compete (they must include the blank), and share the whole probability among themselves.
    Emissions of one token with at most `repeat_gap_frames` blank frames between them count as one (0: as CTC defines).
    """
    ids = np.unique(np.asarray(allowed, dtype=np.int64))
    scores = log_probs if len(ids) == log_probs.shape[1] else log_probs[:, ids]
    best = scores.argmax(axis=1) if len(scores) else np.empty(0, np.int64)
    peaks = np.exp(scores.max(axis=1) - np.logaddexp.reduce(scores, axis=1)) if len(scores) else np.empty(0, np.float32)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    ends = np.append(starts[1:], len(best))
    confidences = np.maximum.reduceat(peaks, starts) if len(starts) else peaks
    tokens = ids[best[starts]]
    spoken = tokens != blank_id
    hypothesis = Hypothesis(tokens[spoken], starts[spoken], ends[spoken], confidences[spoken].astype(np.float32))
    return _merged(hypothesis, repeat_gap_frames) if repeat_gap_frames else hypothesis


def _merged(hypothesis: Hypothesis, gap_frames: int) -> Hypothesis:
    """Repeats of a token that follow it too soon to be spoken again are part of it."""
    tokens, starts, ends = hypothesis.tokens, hypothesis.starts, hypothesis.ends
    echo = (tokens[1:] == tokens[:-1]) & (starts[1:] - ends[:-1] <= gap_frames)
    first = np.flatnonzero(np.insert(~echo, 0, values=True))[: len(tokens)]
    if len(first) == len(tokens):
        return hypothesis
    confidences = np.maximum.reduceat(hypothesis.confidences, first)
    return Hypothesis(tokens[first], starts[first], np.maximum.reduceat(ends, first), confidences)


def identify(log_probs: LogProbs, vocabulary: Vocabulary) -> str | None:
    """The language whose tokens hold the most of an unrestricted best path; None where nothing was said."""
    tokens = best_path(log_probs, range(len(vocabulary.tokens)), vocabulary.blank_id).tokens
    counts = {code: int(np.isin(tokens, ids).sum()) for code, ids in vocabulary.languages.items()}
    return max(counts, key=lambda code: counts[code]) if len(tokens) else None
