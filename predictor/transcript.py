"""A Hypothesis to a Transcript: tokens become words with times and confidence, and words become text or subtitles."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from predictor import spelling
from predictor.bundle import Vocabulary
from predictor.search import Hypothesis

# One subtitle: what two lines of 42 characters hold, shown no longer than a reader keeps looking, and
# broken where the speaker pauses (the usual limits of broadcasters' style guides).
CUE_CHARACTERS = 84
CUE_SECONDS = 7.0
CUE_PAUSE_SECONDS = 0.8

WORD_PAUSE_SECONDS = 0.4

# How two windows' words are paired: what a word without a partner costs, what a pair of different texts, and how far
# apart a pair's times may be for 1. Equal texts 0.36 s apart are one word, different ones 0.13 s apart.
_UNPAIRED = 0.4
_OTHER_TEXT = 0.7
_APART_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it was said. `confidence` is the geometric mean of its tokens' probabilities, in (0, 1]."""

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in `duration_seconds` of audio; `language` is None where nothing was said and none was asked."""

    text: str
    language: str | None
    duration_seconds: float
    words: tuple[Word, ...]


def render(hypothesis: Hypothesis, vocabulary: Vocabulary, frame_seconds: float, start_seconds: float) -> list[Word]:
    """Spell the tokens of a window that starts `start_seconds` into the recording.

    A space ends a word. Where tokens are single characters, so does a pause that nobody makes within a word: models
    that learned from single sentences leave the space out between two.
    """
    starts = start_seconds + hypothesis.starts * frame_seconds
    ends = start_seconds + hypothesis.ends * frame_seconds
    logs = np.log(hypothesis.confidences)
    words: list[Word] = []
    for text, first, last in _spelled(hypothesis, vocabulary, frame_seconds):
        times = (round(float(starts[first]), 3), round(float(ends[last]), 3))
        words.append(Word(text, *times, round(float(np.exp(logs[first : last + 1].mean())), 4)))
    return words


def _spelled(hypothesis: Hypothesis, vocabulary: Vocabulary, frame_seconds: float) -> Iterator[tuple[str, int, int]]:
    """Words, each with the numbers of its first token and its last."""
    tokens = [vocabulary.tokens[token] for token in hypothesis.tokens]
    by_character = vocabulary.spelling == "text"
    pauses = (hypothesis.starts[1:] - hypothesis.ends[:-1]) * frame_seconds > WORD_PAUSE_SECONDS
    word: list[tuple[str, int, int]] = []
    for spelt in [*spelling.characters(tokens, vocabulary.spelling), (" ", 0, 0)]:
        character, first, _ = spelt
        pause = by_character and word and word[-1][2] < first and pauses[first - 1]
        if word and (character.isspace() or pause):
            yield "".join(text for text, _, _ in word), word[0][1], word[-1][2]
            word = []
        if not character.isspace():
            word.append(spelt)


def join(words: Sequence[Word], language: str | None, duration_seconds: float) -> Transcript:
    """The words of all windows, in order, as one Transcript."""
    return Transcript(" ".join(w.text for w in words), language, duration_seconds, tuple(words))


def stitch(
    left: Sequence[Word], right: Sequence[Word], start_seconds: float, end_seconds: float
) -> tuple[list[Word], list[Word]]:
    """Which words to keep of two windows that both heard `start_seconds` to `end_seconds`, so that each is kept once.

    The words of both are paired by text and time. At one place, never within a pair, the transcript changes from left
    to right: next to the pair of equal texts nearest to the middle. So each word comes from the window whose edge,
    where words are cut in half, is farther away. Words are in order, their times in seconds of the recording.
    """
    middle = (start_seconds + end_seconds) / 2
    earlier = sum(1 for _ in takewhile(lambda word: word.end_seconds <= start_seconds - _APART_SECONDS, left))
    heard = list(takewhile(lambda word: word.start_seconds < end_seconds + _APART_SECONDS, right))
    pairs = _paired(left[earlier:], heard)
    times = [float(np.mean([_time(word) for word in pair if word])) for pair in pairs]
    equal = [i for i, (one, other) in enumerate(pairs) if one and other and one.text == other.text]
    change = sum(1 for _ in takewhile(lambda time: time < middle, times))
    if equal:
        anchor = min(equal, key=lambda i: abs(times[i] - middle))
        change = anchor + (times[anchor] < middle)
    kept = earlier + sum(1 for one, _ in pairs[:change] if one)
    return list(left[:kept]), list(right[sum(1 for _, other in pairs[:change] if other) :])


def _paired(left: Sequence[Word], right: Sequence[Word]) -> list[tuple[Word | None, Word | None]]:
    """All words in order, those that are probably one word together: the alignment of least cost."""
    costs = np.add.outer(np.arange(len(left) + 1), np.arange(len(right) + 1)) * _UNPAIRED
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            alone = min(costs[i - 1, j], costs[i, j - 1]) + _UNPAIRED
            costs[i, j] = min(costs[i - 1, j - 1] + _cost(one, other), alone)
    pairs: list[tuple[Word | None, Word | None]] = []
    i, j = len(left), len(right)
    while i or j:
        if i and j and costs[i, j] == costs[i - 1, j - 1] + _cost(left[i - 1], right[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((left[i], right[j]))
        elif j == 0 or (i and _is_next(costs, i, j, left[i - 1], right[j - 1])):
            i -= 1
            pairs.append((left[i], None))
        else:
            j -= 1
            pairs.append((None, right[j]))
    return pairs[::-1]


def _is_next(costs: NDArray[np.float64], i: int, j: int, one: Word, other: Word) -> bool:
    """From the end, whether the left word is the one to leave unpaired: where both may be, the later one."""
    if costs[i - 1, j] == costs[i, j - 1]:
        return _time(one) > _time(other)
    return bool(costs[i - 1, j] < costs[i, j - 1])


def _cost(one: Word, other: Word) -> float:
    apart = abs(_time(one) - _time(other)) / _APART_SECONDS
    return apart * apart + (0 if one.text == other.text else _OTHER_TEXT)


def _time(word: Word) -> float:
    return (word.start_seconds + word.end_seconds) / 2


def to_json(transcript: Transcript) -> str:
    """One line of JSON with the Transcript's own field names."""
    return json.dumps(asdict(transcript), ensure_ascii=False)


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    cues = (f"{number}\n{_span(cue, ',')}\n{_text(cue)}\n" for number, cue in enumerate(cues_of(transcript.words), 1))
    return "\n".join(cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    cues = (f"{_span(cue, '.')}\n{html.escape(_text(cue), quote=False)}\n" for cue in cues_of(transcript.words))
    return "WEBVTT\n\n" + "\n".join(cues)


def cues_of(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """The words in groups that are one subtitle each: by what fits and can be read, and at pauses."""
    first = 0
    for index in range(1, len(words)):
        cue = words[first : index + 1]
        if (
            words[index].start_seconds - words[index - 1].end_seconds > CUE_PAUSE_SECONDS
            or words[index].end_seconds - cue[0].start_seconds > CUE_SECONDS
            or len(_text(cue)) > CUE_CHARACTERS
        ):
            yield words[first:index]
            first = index
    if words:
        yield words[first:]


def _text(cue: Sequence[Word]) -> str:
    return " ".join(word.text for word in cue)


def _span(cue: Sequence[Word], decimal_mark: str) -> str:
    return f"{_clock(cue[0].start_seconds, decimal_mark)} --> {_clock(cue[-1].end_seconds, decimal_mark)}"


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{decimal_mark}{milliseconds % 1000:03d}"
