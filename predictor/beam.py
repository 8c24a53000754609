"""Emissions to a Hypothesis by what a text earns: the best CTC path with hotwords, a language model, or both.

    score of a path = the log-probabilities of its frames + what the readers pay for its text

Out comes what `search.best_path` finds, unless the readers pay for another path. Paths with the same future are merged
by their maximum, not their sum: the search is then exact but for what the beam drops, and equal to best_path where
nothing is paid.
"""

from collections.abc import Hashable, Iterator, Sequence
from heapq import nlargest
from itertools import pairwise
from operator import itemgetter
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Vocabulary
from predictor.engine import Emission
from predictor.hotwords import BONUS, Hotwords
from predictor.language_model import LanguageModel, Sentence
from predictor.search import Hypothesis, LogProbs, best_path, competing, log_total

MARGIN = 8.0  # nats: what is further below the best token of its frame does not compete there
FRAME_TOKENS = 8  # that compete in a frame
WIDTH = 16

# A path's last change: the one before, the frame from which on it stays in a column of the scores, and that column.
Link = tuple[Optional["Link"], int, int]
# What a path's future depends on: what was read, the last token's column (-1: any may follow as a new one), the blanks.
State = tuple[Hashable, int, int]
Frame = tuple[int, list[tuple[int, float]]]  # its number, and the columns that compete with their costs: 0 for the best


class Reader(Protocol):
    """Reads a text token by token and pays for it, in nats. A context is all that what follows depends on."""

    @property
    def start(self) -> Any: ...  # noqa: ANN401  (a context is its reader's business)

    def read(self, context: Any, column: int) -> tuple[Any, float]: ...  # noqa: ANN401

    def end(self, context: Any) -> float: ...  # noqa: ANN401


def search(  # noqa: PLR0913, PLR0917  (best_path's arguments and those of a beam)
    emission: Emission,
    vocabulary: Vocabulary,
    language: str,
    hotwords: Sequence[str] = (),
    repeat_gap_frames: int = 0,
    width: int = WIDTH,
    bonus: float = BONUS,
    model: LanguageModel | None = None,
) -> Hypothesis:
    """The best path with what it earns, among the tokens that compete in `search.best_path`.

    A hotword is a word or phrase; it counts as whole words, whatever the case and the marks between words. A letter, a
    character in NFC and so a vowel sign too, has its `bonus` (nats) once. Hotwords after the first MAX_HOTWORDS, longer
    than MAX_CHARACTERS or that the tokens cannot spell change nothing. `width` paths are kept.
    """
    allowed, blank_id = vocabulary.languages[language], vocabulary.blank_id
    plain = best_path(emission, allowed, blank_id, repeat_gap_frames)
    ids, scores = competing(emission, allowed, blank_id)
    tokens = [vocabulary.tokens[token] for token in ids.tolist()]
    readers: list[Reader] = []
    expected = Hotwords(hotwords, tokens, vocabulary.spelling, bonus)
    if expected.hotwords:
        readers.append(expected)
    if model:
        readers.append(Sentence(model, tokens, vocabulary.spelling))
    if not readers or not len(scores):
        return plain
    reader = readers[0] if len(readers) == 1 else _Together(readers)
    blank = int(np.searchsorted(ids, blank_id))
    total, path = _best(_frames(scores, blank, repeat_gap_frames), reader, blank, repeat_gap_frames, width)
    # The plain path costs nothing. What is not better than it, beyond rounding, has no claim.
    claim = total > _earned(reader, np.searchsorted(ids, plain.tokens).tolist()) + 1e-6
    return _hypothesis(path, scores, ids, blank, repeat_gap_frames) if claim else plain


class _Together:
    """Several readers of one text."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self.start = tuple(reader.start for reader in readers)

    def read(self, context: tuple[Any, ...], column: int) -> tuple[tuple[Any, ...], float]:
        read = [reader.read(part, column) for reader, part in zip(self._readers, context, strict=True)]
        return tuple(part for part, _ in read), sum(paid for _, paid in read)

    def end(self, context: tuple[Any, ...]) -> float:
        return sum(reader.end(part) for reader, part in zip(self._readers, context, strict=True))


def _earned(reader: Reader, columns: Sequence[int]) -> float:
    """What is paid for a whole text."""
    context, total = reader.start, 0.0
    for column in columns:
        context, paid = reader.read(context, column)
        total += paid
    return total + reader.end(context)


def _frames(scores: LogProbs, blank: int, gap_frames: int) -> Iterator[Frame]:
    """The frames that may change a state: where one column stays alone, all paths share it, and its first ones do."""
    top = scores.max(axis=1)
    near = ~(scores < (top - MARGIN)[:, None])
    for crowded in np.flatnonzero(np.count_nonzero(near, axis=1) > FRAME_TOKENS):
        best = np.argpartition(scores[crowded], -FRAME_TOKENS)[-FRAME_TOKENS:]
        near[crowded] = False
        near[crowded, best] = True
    rows, columns = np.nonzero(near)
    near_the_top = list(zip(columns.tolist(), (scores[rows, columns] - top[rows]).tolist(), strict=True))
    bounds = np.searchsorted(rows, np.arange(len(scores) + 1)).tolist()
    alone, run = -1, 0
    for frame, (first, end) in enumerate(pairwise(bounds)):
        column = near_the_top[first][0] if end - first == 1 else -1
        run = run + 1 if column == alone else 1
        alone = column
        if column < 0 or run <= (gap_frames + 1 if column == blank else 1):
            yield frame, near_the_top[first:end]


def _best(frames: Iterator[Frame], reader: Reader, blank: int, gap_frames: int, width: int) -> tuple[float, Link]:
    """The best path, and by how much its score is above the plain path's, which earns nothing."""
    beam: dict[State, tuple[float, Link]] = {(reader.start, -1, 0): (0.0, (None, 0, blank))}
    for frame, tokens in frames:
        grown: dict[State, tuple[float, Link]] = {}
        for (context, last, blanks), (score, link) in beam.items():
            for column, cost in tokens:
                total, after = score + cost, context
                if column == blank:
                    state = (context, last, blanks + 1) if last >= 0 and blanks < gap_frames else (context, -1, 0)
                else:
                    if column != last:
                        after, paid = reader.read(context, column)
                        total += paid
                    state = (after, column, 0)
                if state not in grown or total > grown[state][0]:
                    grown[state] = total, link if link[2] == column else (link, frame, column)
        beam = grown if len(grown) <= width else dict(nlargest(width, grown.items(), key=lambda item: item[1][0]))
    ended = ((score + reader.end(context), link) for (context, _, _), (score, link) in beam.items())
    return max(ended, key=itemgetter(0))


def _hypothesis(path: Link, scores: LogProbs, ids: NDArray[np.int64], blank: int, gap_frames: int) -> Hypothesis:
    """The path as `search.best_path` would tell it."""
    runs: list[tuple[int, int, int, float]] = []  # column, start, end and peak, the last one first
    link: Link | None = path
    end = len(scores)
    while link is not None:
        link, start, column = link
        if column != blank:
            last, peak = end, (scores[start:end, column] - log_total(scores[start:end])).max()
            if runs and runs[-1][0] == column and runs[-1][1] - end <= gap_frames:
                _, _, last, other = runs.pop()
                peak = max(peak, other)
            runs.append((column, start, last, peak))
        end = start
    if not runs:  # a language model may find silence the likeliest
        none = np.empty(0, np.int64)
        return Hypothesis(none, none, none, np.empty(0, np.float32))
    columns, starts, ends, peaks = (np.array(values) for values in zip(*reversed(runs), strict=True))
    return Hypothesis(ids[columns], starts, ends, np.exp(peaks).astype(np.float32))
