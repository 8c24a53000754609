"""The test set in the repository: sentences that training never saw, a good part by speakers it never heard.

Speakers are few and speak several sentences each, as in real test sets, so that statistics over it can
treat what one speaker says as related.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from demo.sentences import LANGUAGES, draw, load_grammar
from demo.speakers import SEEN_VARIANTS, UNSEEN_VARIANTS, Speaker, draw_speaker, speak, to_opus
from predictor.features import SAMPLE_RATE_HZ

DIRECTORY = Path(__file__).parent / "testset"
SEED = "vani-demo/test"
NATURAL, RANDOM = 150, 40  # utterances per language
SILENCE_SECONDS = (0.1, 0.3)
SPEAKERS = {"seen": 15, "unseen": 10}  # per language; the unseen speak two fifths of the utterances


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance of the test set. `audio` is relative to the manifest; `unseen` says the speaker is new."""

    id: str
    audio: str
    text: str
    language: str
    kind: str
    speaker: str
    unseen: bool
    duration_seconds: float
    sha256: str


def sentences(language: str) -> list[tuple[str, str]]:
    """The (kind, text) pairs of one language, natural ones first."""
    grammar = load_grammar(language)
    natural = draw(grammar, NATURAL, 0.0, f"{SEED}/natural/{language}", set())
    return natural + draw(grammar, RANDOM, 1.0, f"{SEED}/random/{language}", {text for _, text in natural})


def texts() -> set[str]:
    """Every sentence of the test set: what training must leave out."""
    return {text for language in LANGUAGES for _, text in sentences(language)}


def _speakers(language: str) -> list[tuple[Speaker, bool]]:
    rng = Random(f"{SEED}/speakers/{language}")
    seen = [(draw_speaker(language, SEEN_VARIANTS, rng), False) for _ in range(SPEAKERS["seen"])]
    return seen + [(draw_speaker(language, UNSEEN_VARIANTS, rng), True) for _ in range(SPEAKERS["unseen"])]


def _silence(text: str) -> tuple[int, int]:
    """Samples of silence before and after the speech: a recording begins before the speaker does."""
    rng = Random(f"{SEED}/silence/{text}")
    before, after = (int(rng.uniform(*SILENCE_SECONDS) * SAMPLE_RATE_HZ) for _ in range(2))
    return before, after


def _clips(language: str, directory: Path) -> Iterator[Clip]:
    speakers = _speakers(language)
    for number, (kind, text) in enumerate(sentences(language)):
        speaker, unseen = speakers[number % len(speakers)]
        samples = np.pad(speak(text, speaker), _silence(text))
        file = to_opus(samples)
        identity = f"{language}-{kind}-{number:03d}"
        (directory / "audio" / f"{identity}.opus").write_bytes(file)
        digest = hashlib.sha256(file).hexdigest()
        seconds = round(len(samples) / SAMPLE_RATE_HZ, 3)
        yield Clip(identity, f"audio/{identity}.opus", text, language, kind, speaker.id, unseen, seconds, digest)


def write(directory: Path = DIRECTORY) -> int:
    """Speak the test set into `directory` (audio/ and manifest.jsonl); returns how many clips."""
    (directory / "audio").mkdir(parents=True, exist_ok=True)
    clips = [clip for language in LANGUAGES for clip in _clips(language, directory)]
    lines = (json.dumps({name: getattr(clip, name) for name in Clip.__slots__}, ensure_ascii=False) for clip in clips)
    (directory / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(clips)


def read(directory: Path = DIRECTORY) -> list[Clip]:
    """The clips of a written test set, in manifest order."""
    lines = (directory / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [Clip(**json.loads(line)) for line in lines]
