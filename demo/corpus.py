"""The training corpus: sentences spoken by many speakers, kept as one file of samples and one of labels."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from demo.sentences import LANGUAGES, draw, load_grammar
from demo.speakers import MORE_VARIANTS, SEEN_VARIANTS, UNSEEN_VARIANTS, draw_speaker, speak

SEED = "vani-demo"
# Utterances a language. "dev" is watched while training, and is not the test set; "more" is what release 1 adds.
SPLITS = {
    "dev": {"vi": 100, "hi": 100},
    "train": {"vi": 10_000, "hi": 5_000},
    "more": {"vi": 8_000, "hi": 8_000},
}
VARIANTS = {"dev": SEEN_VARIANTS + UNSEEN_VARIANTS, "train": SEEN_VARIANTS, "more": SEEN_VARIANTS + MORE_VARIANTS}
RANDOM_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Utterance:
    """A labelled span of `samples.i16`: `start` and `length` in samples at 16 kHz."""

    split: str
    language: str
    kind: str
    text: str
    speaker: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Corpus:
    utterances: tuple[Utterance, ...]
    samples: NDArray[np.int16]

    def audio(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's samples in [-1, 1], float32 [N]."""
        span = self.samples[utterance.start : utterance.start + utterance.length]
        return span.astype(np.float32) / 32768.0


def _speak(job: tuple[str, str, str]) -> tuple[str, NDArray[np.int16]]:
    language, text, split = job
    speaker = draw_speaker(language, VARIANTS[split], Random(f"{SEED}/{split}/{text}"))
    return speaker.id, speak(text, speaker)


def _jobs(exclude: set[str]) -> list[tuple[str, str, str, str]]:
    """(language, kind, text, split) of the whole corpus; no text occurs twice, none is in `exclude`."""
    jobs = []
    for language in LANGUAGES:
        grammar = load_grammar(language)
        taken = set(exclude)
        for split, counts in SPLITS.items():
            for kind, text in draw(grammar, counts[language], RANDOM_SHARE, f"{SEED}/{split}/{language}", taken):
                taken.add(text)
                jobs.append((language, kind, text, split))
    return jobs


def synthesise(directory: Path, exclude: set[str]) -> Corpus:
    """Speak the corpus into `directory`, or read it back where it is complete already.

    The index is written last, so an interrupted synthesis is started anew and never half used.
    """
    index = directory / "utterances.jsonl"
    if not index.exists():
        directory.mkdir(parents=True, exist_ok=True)
        jobs = _jobs(exclude)
        utterances, start = [], 0
        with ProcessPoolExecutor() as pool, (directory / "samples.i16").open("wb") as file:
            spoken = pool.map(_speak, [(language, text, split) for language, _, text, split in jobs], chunksize=32)
            for (language, kind, text, split), (speaker, samples) in zip(
                jobs, tqdm(spoken, "speaking", len(jobs), unit="utt"), strict=True
            ):
                utterances.append(Utterance(split, language, kind, text, speaker, start, len(samples)))
                file.write(samples.tobytes())
                start += len(samples)
        lines = (json.dumps(asdict(u), ensure_ascii=False) + "\n" for u in utterances)
        index.write_text("".join(lines), encoding="utf-8")
    return read(directory)


def read(directory: Path) -> Corpus:
    lines = (directory / "utterances.jsonl").read_text(encoding="utf-8").splitlines()
    samples = np.memmap(directory / "samples.i16", dtype="<i2", mode="r")
    return Corpus(tuple(Utterance(**json.loads(line)) for line in lines), samples)
