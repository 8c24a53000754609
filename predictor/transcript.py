"""A Hypothesis to a Transcript: tokens become words with times and confidence, and words become text or subtitles."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from predictor.bundle import Vocabulary
from predictor.search import Hypothesis

# One subtitle: what two lines of 42 characters hold, shown no longer than a reader keeps looking, and
# broken where the speaker pauses (the usual limits of broadcasters' style guides).
CUE_CHARACTERS = 84
CUE_SECONDS = 7.0
CUE_PAUSE_SECONDS = 0.8


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
    """Spell the tokens of a window that starts `start_seconds` into the recording; a space token ends a word."""
    words, first = [], 0
    spelling = [vocabulary.tokens[token] for token in hypothesis.tokens]
    for last, text in enumerate([*spelling, " "]):
        if text != " ":
            continue
        if last > first:
            confidence = np.exp(np.log(hypothesis.confidences[first:last]).mean())
            words.append(
                Word(
                    text="".join(spelling[first:last]),
                    start_seconds=round(start_seconds + float(hypothesis.starts[first]) * frame_seconds, 3),
                    end_seconds=round(start_seconds + float(hypothesis.ends[last - 1]) * frame_seconds, 3),
                    confidence=round(float(confidence), 4),
                )
            )
        first = last + 1
    return words


def join(words: Sequence[Word], language: str | None, duration_seconds: float) -> Transcript:
    """The words of all windows, in order, as one Transcript."""
    return Transcript(" ".join(w.text for w in words), language, duration_seconds, tuple(words))


def to_json(transcript: Transcript) -> str:
    """One line of JSON with the Transcript's own field names."""
    return json.dumps(asdict(transcript), ensure_ascii=False)


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    cues = (f"{number}\n{_span(cue, ',')}\n{_text(cue)}\n" for number, cue in enumerate(_cues(transcript.words), 1))
    return "\n".join(cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    cues = (f"{_span(cue, '.')}\n{html.escape(_text(cue), quote=False)}\n" for cue in _cues(transcript.words))
    return "WEBVTT\n\n" + "\n".join(cues)


def _cues(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
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
