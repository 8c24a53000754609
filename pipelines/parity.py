"""Is one bundle as good as another, and faster? Both over the same test set, in turns, in one process.

A test set is a directory with a manifest.jsonl, a line a clip: {"audio", "text", "language"}, or NeMo's names for them,
{"audio_filepath", "text", "lang"}; the audio's path is relative to the directory.
"""

import json
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
from tqdm import tqdm

from pipelines.errors import Permanent
from predictor.errors import PredictorError
from predictor.recognizer import Recognizer

MANIFEST = "manifest.jsonl"
MAX_RISE_POINTS = 0.3  # of word error rate: what one in three hundred words decides
LEAST_SPEEDUP = 1.1  # what is not even a tenth faster is not worth a difference


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, and what is said in it."""

    audio: Path
    text: str
    language: str | None


@dataclass(frozen=True, slots=True)
class Parity:
    """Word errors of both, the candidate's against what the reference heard, and seconds of processor time."""

    clips: int
    words: int
    reference_errors: int
    candidate_errors: int
    disagreements: int
    reference_seconds: float
    candidate_seconds: float

    @property
    def rise_points(self) -> float:
        """By how much the candidate's word error rate is higher, in points of 100."""
        return 100 * (self.candidate_errors - self.reference_errors) / self.words

    @property
    def speedup(self) -> float:
        """How many times faster the candidate is."""
        return self.reference_seconds / self.candidate_seconds

    def __str__(self) -> str:
        rates = [100 * errors / self.words for errors in (self.reference_errors, self.candidate_errors)]
        return (
            f"{self.clips} clips, {self.words} words: {rates[0]:.2f} % -> {rates[1]:.2f} % WER, "
            f"{self.disagreements} words different, {self.speedup:.2f} times the speed"
        )


def read(directory: Path) -> list[Clip]:
    """The clips of a test set; raises Permanent with the line that is none."""
    try:
        lines = (directory / MANIFEST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(f"{directory} has no {MANIFEST} that can be read") from error
    clips = [_clip(directory, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not clips:
        raise Permanent(f"{directory / MANIFEST} has no clips")
    return clips


def _clip(directory: Path, number: int, line: str) -> Clip:
    try:
        row = json.loads(line)
        audio, text = row.get("audio", row.get("audio_filepath")), row["text"]
        language = row.get("language", row.get("lang"))
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise Permanent(f"{MANIFEST}, line {number}, is not an object with audio and text") from error
    if not isinstance(audio, str) or not isinstance(text, str) or not isinstance(language, str | None):
        raise Permanent(f"{MANIFEST}, line {number}: audio, text and language must be texts")
    return Clip(directory / audio, text, language)


def compare(reference: Recognizer, candidate: Recognizer, clips: Sequence[Clip]) -> Parity:
    """Every clip through both, one after the other; raises Permanent for a clip that cannot be transcribed."""
    said = [_words(clip.text) for clip in clips]
    heard: tuple[list[str], list[str]] = ([], [])
    seconds = [0.0, 0.0]
    for number, clip in enumerate(tqdm(clips, "parity", unit="clip", leave=False, disable=None)):
        data = _bytes(clip)
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            heard[which].append(_words(_transcribe((reference, candidate)[which], clip, data)))
            seconds[which] += time.process_time() - began
    words = sum(len(text.split()) for text in said)
    if not words:
        raise Permanent("the test set has no words to count errors by")
    before, after = heard
    return Parity(len(clips), words, _errors(said, before), _errors(said, after), _errors(before, after), *seconds)


def problems(
    parity: Parity, max_rise_points: float = MAX_RISE_POINTS, least_speedup: float = LEAST_SPEEDUP
) -> Iterator[str]:
    """Why the candidate may not take the reference's place; nothing where it may."""
    if parity.rise_points > max_rise_points:
        yield f"its word error rate is {parity.rise_points:.2f} points higher, and {max_rise_points:g} is allowed"
    if parity.speedup < least_speedup:
        yield f"it is {parity.speedup:.2f} times as fast, and {least_speedup:g} is asked for"


def _bytes(clip: Clip) -> bytes:
    try:
        return clip.audio.read_bytes()
    except OSError as error:
        raise Permanent(f"{clip.audio} cannot be read") from error


def _transcribe(recognizer: Recognizer, clip: Clip, data: bytes) -> str:
    try:
        return recognizer.transcribe(data, clip.language).text
    except PredictorError as error:
        raise Permanent(f"{clip.audio.name}: {error}") from error


def _words(text: str) -> str:
    """In one form of Unicode and without case: both sides go through it, so it cannot favour one."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _errors(references: list[str], hypotheses: list[str]) -> int:
    """Words substituted, deleted and inserted; a reference without words makes every word an insertion."""
    filled = [(r, h) for r, h in zip(references, hypotheses, strict=True) if r]
    inserted = sum(len(h.split()) for r, h in zip(references, hypotheses, strict=True) if not r)
    if not filled:
        return inserted
    found = jiwer.process_words([r for r, _ in filled], [h for _, h in filled])
    return int(found.substitutions + found.deletions + found.insertions + inserted)
