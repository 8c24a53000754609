"""Emissions and hotwords to a Hypothesis: the best CTC path once the letters of hotwords have their bonus.

    score of a path = the log-probabilities of its frames + the bonus for each letter of its text that lies in a hotword

Out comes what `search.best_path` finds, unless hotwords pay for another path. This is shallow-fusion biasing (Zhao et
al. 2019) as icefall and sherpa do it: a match has its bonus letter by letter, so that the beam keeps it until its end,
and gives it back where it breaks. What tokens spell is matched, so that it does not matter how a model cuts words.
Paths with the same future are merged by their maximum, not their sum: with no language model the search is then exact
but for what the beam drops, and equal to best_path where there is no bonus.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from heapq import nlargest
from itertools import islice, pairwise
from operator import itemgetter
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Spelling, Vocabulary
from predictor.engine import Emission
from predictor.search import Hypothesis, LogProbs, best_path, competing, log_total
from predictor.spelling import as_bytes

BONUS = 0.5  # nats a letter: benchmarks/hotwords.py chose it, on the odd clips of the test set
MARGIN = 8.0  # nats: what is further below the best token of its frame does not compete there
FRAME_TOKENS = 8  # that compete in a frame
MAX_HOTWORDS = 100
MAX_CHARACTERS = 60  # of a hotword
_NAME_WORDS = 6  # "thành phố Hồ Chí Minh" has five; a phrase of more is a sentence
_LEAST_LETTERS = 3  # of a sentence's word: shorter ones are mostly grammar, and sound like much else
_SEPARATORS = re.compile(r'[,;\n\r!?…"“”()\[\]।॥،؛؟۔᱾꯫]|[.:](?!\w)')

# A path's last change: the one before, the frame from which on it stays in a column of the scores, and that column.
Link = tuple[Optional["Link"], int, int]
# What was read: the longest end of the text that begins a hotword, None inside a word that does not; which of its
# characters, a bit each, are letters of no whole hotword yet; the bytes of an unfinished character.
Context = tuple[str | None, int, bytes]
NOTHING: Context = ("", 0, b"")
# What a path's future depends on: what was read, the last token's column (-1: any may follow as a new one), the blanks.
State = tuple[Context, int, int]
Frame = tuple[int, list[tuple[int, float]]]  # its number, and the columns that compete with their costs: 0 for the best


def phrases(prompt: str) -> tuple[str, ...]:
    """The hotwords in a prompt: what stands between punctuation marks or line ends, at most MAX_HOTWORDS, in order.

    A phrase of more than six words is taken for running text, and its words of three or more letters are hotwords each.
    Duplicates and what is longer than MAX_CHARACTERS are left out.
    """
    size = MAX_HOTWORDS * (MAX_CHARACTERS + 2)
    known = prompt if len(prompt) <= size else prompt[:size].rpartition(" ")[0]
    found: dict[str, str] = {}
    for words in map(str.split, _SEPARATORS.split(known)):
        parts = [" ".join(words)] if len(words) <= _NAME_WORDS else [w for w in words if len(w) >= _LEAST_LETTERS]
        for part in parts:
            if len(part) <= MAX_CHARACTERS:
                found.setdefault(_letters(part).strip(), part)
    return tuple(islice((part for letters, part in found.items() if letters), MAX_HOTWORDS))


def search(  # noqa: PLR0913, PLR0917  (best_path's arguments and those of a beam)
    emission: Emission,
    vocabulary: Vocabulary,
    language: str,
    hotwords: Sequence[str],
    repeat_gap_frames: int = 0,
    width: int = 16,
    bonus: float = BONUS,
) -> Hypothesis:
    """The best path with bonus, among the tokens that compete in `search.best_path`.

    A hotword is a word or phrase; it counts as whole words, whatever the case and the marks between words. A letter, a
    character in NFC and so a vowel sign too, has its `bonus` (nats) once. Hotwords after the first MAX_HOTWORDS, longer
    than MAX_CHARACTERS or that the tokens cannot spell change nothing. `width` paths are kept.
    """
    allowed, blank_id = vocabulary.languages[language], vocabulary.blank_id
    plain = best_path(emission, allowed, blank_id, repeat_gap_frames)
    ids, scores = competing(emission, allowed, blank_id)
    reader = _Reader(hotwords, [vocabulary.tokens[token] for token in ids.tolist()], vocabulary.spelling, bonus)
    if not reader.hotwords or not len(scores):
        return plain
    blank = int(np.searchsorted(ids, blank_id))
    total, path = _best(_frames(scores, blank, repeat_gap_frames), reader, blank, repeat_gap_frames, width)
    # The plain path costs nothing. What is not better than it, beyond rounding, has no claim.
    claim = total > bonus * reader.letters(np.searchsorted(ids, plain.tokens).tolist()) + 1e-6
    return _hypothesis(path, scores, ids, blank, repeat_gap_frames) if claim else plain


def _frames(scores: LogProbs, blank: int, gap_frames: int) -> Iterator[Frame]:
    """The frames that may change a state: where one column stays alone, all paths share it, and its first ones do."""
    top = scores.max(axis=1)
    near = ~(scores < (top - MARGIN)[:, None])
    for crowded in np.flatnonzero(np.count_nonzero(near, axis=1) > FRAME_TOKENS):
        best = np.argpartition(scores[crowded], -FRAME_TOKENS)[-FRAME_TOKENS:]
        near[crowded] = False
        near[crowded, best] = True
    rows, columns = np.nonzero(near)
    competing = list(zip(columns.tolist(), (scores[rows, columns] - top[rows]).tolist(), strict=True))
    bounds = np.searchsorted(rows, np.arange(len(scores) + 1)).tolist()
    alone, run = -1, 0
    for frame, (first, end) in enumerate(pairwise(bounds)):
        column = competing[first][0] if end - first == 1 else -1
        run = run + 1 if column == alone else 1
        alone = column
        if column < 0 or run <= (gap_frames + 1 if column == blank else 1):
            yield frame, competing[first:end]


def _best(frames: Iterator[Frame], reader: "_Reader", blank: int, gap_frames: int, width: int) -> tuple[float, Link]:
    """The best path, and by how much its score is above the plain path's without bonus."""
    beam: dict[State, tuple[float, Link]] = {(NOTHING, -1, 0): (0.0, (None, 0, blank))}
    for frame, tokens in frames:
        grown: dict[State, tuple[float, Link]] = {}
        for (context, last, blanks), (score, link) in beam.items():
            for column, cost in tokens:
                total, after = score + cost, context
                if column == blank:
                    state = (context, last, blanks + 1) if last >= 0 and blanks < gap_frames else (context, -1, 0)
                else:
                    if column != last:
                        after, letters = reader.read(context, column)
                        total += reader.bonus * letters
                    state = (after, column, 0)
                if state not in grown or total > grown[state][0]:
                    grown[state] = total, link if link[2] == column else (link, frame, column)
        beam = grown if len(grown) <= width else dict(nlargest(width, grown.items(), key=lambda item: item[1][0]))
    ended = ((score + reader.bonus * reader.end(context), link) for (context, _, _), (score, link) in beam.items())
    return max(ended, key=itemgetter(0))


def _hypothesis(path: Link, scores: LogProbs, ids: NDArray[np.int64], blank: int, gap_frames: int) -> Hypothesis:
    """The path, which says something, as `search.best_path` would tell it."""
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
    columns, starts, ends, peaks = (np.array(values) for values in zip(*reversed(runs), strict=True))
    return Hypothesis(ids[columns], starts, ends, np.exp(peaks).astype(np.float32))


class _Reader:
    """Reads the spelling of one token after another, and counts the letters that lie in hotwords.

    Letters count as they come, as long as they may become a whole hotword, and are taken back, as a negative count,
    where they do not.
    """

    def __init__(self, hotwords: Sequence[str], tokens: Sequence[str], spelling: Spelling, bonus: float) -> None:
        """`tokens`: the spelling of each column; `bonus`: what a letter is worth to who asks."""
        self.bonus = bonus
        short = (hotword for hotword in islice(hotwords, MAX_HOTWORDS) if len(hotword) <= MAX_CHARACTERS)
        self.hotwords = {" ".join(_letters(hotword).split()) for hotword in short} - {""}
        self._beginnings = {hotword[:end] for hotword in self.hotwords for end in range(len(hotword) + 1)}
        self._tokens = tokens
        self._spelling = spelling
        self._known: dict[tuple[Context, int], tuple[Context, int]] = {}

    def letters(self, columns: Sequence[int]) -> int:
        """How many letters of a whole text lie in hotwords."""
        context, count = NOTHING, 0
        for column in columns:
            context, more = self.read(context, column)
            count += more
        return count + self.end(context)

    def read(self, context: Context, column: int) -> tuple[Context, int]:
        """The context after one more token, and the letters that it adds or takes back."""
        known = self._known.get((context, column))
        if known is None:
            beginning, open_letters, pending = context
            text, pending = self._spell(column, pending)
            count = 0
            for character in _letters(text):
                beginning, open_letters, more = self._step(beginning, open_letters, character)
                count += more
            known = self._known[context, column] = (beginning, open_letters, pending), count
        return known

    def end(self, context: Context) -> int:
        """What the end of the text adds or takes back: it ends a word, and nothing may become whole any more."""
        beginning, open_letters, _ = context
        _, open_letters, count = self._step(beginning, open_letters, " ")
        return count - open_letters.bit_count()

    def _spell(self, column: int, pending: bytes) -> tuple[str, bytes]:
        if self._spelling != "bytes":
            return self._tokens[column], b""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(pending + as_bytes(self._tokens[column]))
        return text, decoder.getstate()[0]

    def _step(self, beginning: str | None, open_letters: int, character: str) -> tuple[str | None, int, int]:
        if beginning is None:
            return ("" if character == " " else None), 0, 0
        before, whole = open_letters.bit_count(), 0
        if character == " ":
            if not beginning or beginning[-1] == " ":
                return beginning, open_letters, 0
            ended = open_letters & _last_bits(_longest_end(beginning, self.hotwords))
            open_letters ^= ended
            whole = ended.bit_count()
        after = _longest_end(beginning + character, self._beginnings)
        open_letters = (open_letters << 1 | (character != " ")) & _last_bits(after)
        return after, open_letters, whole + open_letters.bit_count() - before


def _longest_end(text: str, known: AbstractSet[str]) -> str | None:
    """The longest end of the text that starts a word and is known (Aho and Corasick's failure links, unrolled)."""
    while text not in known:
        _, space, text = text.partition(" ")
        if not space:
            return None
    return text


def _last_bits(text: str | None) -> int:
    return (1 << len(text or "")) - 1


def _letters(text: str) -> str:
    """Letters, marks and digits in NFC without case; a space for what parts words; nothing for joiners and the like."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    kinds = ((character, unicodedata.category(character)) for character in folded)
    return "".join(character if kind[0] in "LMN" else " " for character, kind in kinds if kind != "Cf")
