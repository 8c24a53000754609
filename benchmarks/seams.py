"""Does a long recording lose or double words where it is cut into windows? Exit status 1 if it does.

In go the test set's clips, joined in random order into recordings of ten minutes: with pauses of 0.25 to 1 s, clean
and with noise; with short pauses, which are cut only where a window would grow too long; and trimmed and butted
together, so that nobody ever pauses and windows overlap. Out come, for each, the words lost, doubled, added or changed
at a seam, and the error rate of the recording beside that of its clips alone (of the very samples, noise included).

What counts. The words of the recording are aligned with those of the clips alone. Where a stretch of them has fewer
words than it should, those are lost most of whose letters have no counterpart; where it has more, those without are
added, and doubled if the recording has the same word, or another at the same time, next to it. All else that differs
is changed: misheard, or written in two words or one. Words within a second of a seam count at it. A network also hears
differently for what else is in a window, seam or no seam; so the whole recording is heard as one window too, and what
is missing or added there as well was not lost or doubled by a seam: it is `by context`.

Error rates are judged over all recordings of a sort, because one recording's moves by a point with nothing but the
pauses: against the clips alone where there are pauses as people make them, and against the one window where clips are
trimmed to their first and last sound, which the network hears badly alone.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path

import jiwer
import numpy as np
from measuring import Samples, console, encoded, samples_of
from rich.table import Table
from tqdm import tqdm

from demo import testset
from demo.testset import Clip
from predictor.features import SAMPLE_RATE_HZ
from predictor.recognizer import Recognizer
from predictor.segments import Window
from predictor.settings import EMBEDDED_BUNDLE, available_cores
from predictor.transcript import Word

NEAR_SECONDS = 1.0
SAME_SECONDS = 0.3  # two transcripts' times of one word differ by less
MAX_POINTS = 0.5
LEAST_SEAMS = 500
TRIMMED = 0.01  # of a clip's peak: what is quieter at its ends
SPOKEN = 0.01  # of full scale


@dataclass(frozen=True, slots=True)
class Join:
    """How clips are joined: the pauses between them, as they are or trimmed, and noise so far below the speech."""

    name: str
    pause_seconds: tuple[float, float]
    trimmed: bool = False
    noise_db: float | None = None

    @property
    def pauses(self) -> bool:
        return self.pause_seconds[1] > 0


JOINS = (
    Join("clean", (0.25, 1.0)),
    Join("noise at -30 dB", (0.25, 1.0), noise_db=30.0),
    Join("noise at -20 dB", (0.25, 1.0), noise_db=20.0),
    Join("short pauses", (0.3, 0.45), trimmed=True),
    Join("no pause", (0.0, 0.0), trimmed=True),
)


@dataclass(frozen=True, slots=True)
class Recording:
    """Clips joined; clip i lies in samples `spans[i]`."""

    join: Join
    samples: Samples
    clips: tuple[Clip, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def language(self) -> str:
        return self.clips[0].language

    @property
    def reference(self) -> str:
        return " ".join(clip.text for clip in self.clips)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the words of one recording with windows of at most `max_seconds`."""

    join: Join
    language: str
    max_seconds: float
    seams: int
    overlaps: int
    lost: tuple[Word, ...]
    doubled: tuple[Word, ...]
    added: int
    changed: int
    by_context: int
    errors: int
    errors_alone: int
    errors_uncut: int
    words: int


def joined(join: Join, clips: Sequence[Clip], rng: np.random.Generator) -> Recording:
    parts: list[Samples] = []
    spans: list[tuple[int, int]] = []
    end = 0
    for clip in clips:
        samples = _trimmed(samples_of(clip)) if join.trimmed else samples_of(clip)
        pause = np.zeros(round(rng.uniform(*join.pause_seconds) * SAMPLE_RATE_HZ), np.float32)
        spans.append((end, end + len(samples)))
        end += len(samples) + len(pause)
        parts += [samples, pause]
    whole = np.concatenate(parts)
    if join.noise_db is not None:
        speech = np.sqrt(np.mean(np.square(whole[np.abs(whole) > SPOKEN])))
        noise = rng.standard_normal(len(whole)) * speech * 10 ** (-join.noise_db / 20)
        whole = np.clip(whole + noise, -1, 1).astype(np.float32)
    return Recording(join, whole, tuple(clips), tuple(spans))


def _trimmed(samples: Samples) -> Samples:
    heard = np.flatnonzero(np.abs(samples) > np.abs(samples).max() * TRIMMED)
    return samples[heard[0] : heard[-1] + 1]


def recordings(joins: Sequence[Join], seconds: float, repeats: int, seed: int) -> Iterator[Recording]:
    """Every join in every language, `repeats` times, each with clips in an order of its own (natural and random)."""
    known = testset.read()
    rng = np.random.default_rng(seed)
    for join, language, _ in product(joins, ("vi", "hi"), range(repeats)):
        clips = [clip for clip in known if clip.language == language]
        shuffled = [clips[index] for index in rng.permutation(len(clips))]
        pause = sum(join.pause_seconds) / 2
        lengths = np.cumsum([clip.duration_seconds + pause for clip in shuffled])
        yield joined(join, shuffled[: int(np.searchsorted(lengths, seconds)) + 1], rng)


def unmatched(expected: Sequence[Word], found: Sequence[Word]) -> tuple[set[Word], set[Word], set[Word]]:
    """Words of `expected` that are missing in `found`, words of `found` that `expected` has not, and those of both
    that differ."""
    texts = [" ".join(word.text for word in words) for words in (expected, found)]
    if not all(texts):
        return set(expected), set(found), set()
    missing, added, different = set(), set(), set()
    for equal, run in groupby(jiwer.process_words(*texts).alignments[0], key=lambda chunk: chunk.type == "equal"):
        if equal:
            continue
        stretch = list(run)
        ours = expected[stretch[0].ref_start_idx : stretch[-1].ref_end_idx]
        theirs = found[stretch[0].hyp_start_idx : stretch[-1].hyp_end_idx]
        without, extra = _without_counterpart(ours, theirs)
        missing |= without
        added |= extra
        different |= (set(ours) - without) | (set(theirs) - extra)
    return missing, added, different


def _without_counterpart(ours: Sequence[Word], theirs: Sequence[Word]) -> tuple[set[Word], set[Word]]:
    """Of the side that has more words, those most of whose letters an alignment of all letters leaves alone."""
    letters = ["".join(word.text for word in words) for words in (ours, theirs)]
    if not all(letters) or len(ours) == len(theirs):
        return (set(), set()) if all(letters) else (set(ours), set(theirs))
    chunks = jiwer.process_characters(*letters).alignments[0]
    paired = [c for c in chunks if c.type in ("equal", "substitute")]
    left = {i for c in paired for i in range(c.ref_start_idx, c.ref_end_idx)}
    right = {i for c in paired for i in range(c.hyp_start_idx, c.hyp_end_idx)}
    if len(ours) > len(theirs):
        return _mostly_outside(ours, left), set()
    return set(), _mostly_outside(theirs, right)


def _mostly_outside(words: Sequence[Word], paired: set[int]) -> set[Word]:
    ends = np.cumsum([len(word.text) for word in words]).tolist()
    spans = [range(end - len(word.text), end) for word, end in zip(words, ends, strict=True)]
    return {word for word, span in zip(words, spans, strict=True) if 2 * len(paired & set(span)) < len(span)}


def measure(recognizer: Recognizer, limits: Sequence[float], recording: Recording) -> list[Result]:
    """The results of one recording for each limit; what they are compared with is recognised once."""
    language, samples = recording.language, recording.samples
    alone: list[Word] = []
    for first, last in recording.spans:
        alone += recognizer.recognize(Window(first / SAMPLE_RATE_HZ, samples[first:last]), language)[0]
    uncut = recognizer.recognize(Window(0.0, samples), language)[0]
    file = encoded(samples, "WAV", "FLOAT")
    return [_measure(_limited(recognizer, limit), recording, file, alone, uncut) for limit in limits]


def _limited(recognizer: Recognizer, max_seconds: float) -> Recognizer:
    return replace(recognizer, bundle=replace(recognizer.bundle, max_window_seconds=max_seconds))


def _measure(
    recognizer: Recognizer, recording: Recording, file: bytes, alone: Sequence[Word], uncut: Sequence[Word]
) -> Result:
    windows = recognizer.split(recognizer.decode(file))[1:]
    seams = [(w.start_seconds, w.start_seconds + w.overlap_seconds) for w in windows]
    found = recognizer.transcribe(file, recording.language).words
    missing, added, different = unmatched(alone, found)
    missing_too, added_too, _ = unmatched(uncut, found)
    at_seams = partial(_near, seams)
    lost = {word for word in filter(at_seams, missing) if any(_same(word, other) for other in missing_too)}
    more = set(filter(at_seams, added)) & added_too
    doubled = {word for word in more if any(_twice(word, other) for other in found)}
    return Result(
        join=recording.join,
        language=recording.language,
        max_seconds=recognizer.bundle.max_window_seconds,
        seams=len(seams),
        overlaps=sum(end > start for start, end in seams),
        lost=tuple(lost),
        doubled=tuple(doubled),
        added=len(more - doubled),
        changed=sum(map(at_seams, different & set(alone))),
        by_context=sum(map(at_seams, missing | added)) - len(lost) - len(more),
        errors=_errors(recording.reference, found),
        errors_alone=_errors(recording.reference, alone),
        errors_uncut=_errors(recording.reference, uncut),
        words=len(recording.reference.split()),
    )


def _near(seams: Sequence[tuple[float, float]], word: Word) -> bool:
    first, last = word.start_seconds - NEAR_SECONDS, word.end_seconds + NEAR_SECONDS
    return any(first < end and start < last for start, end in seams)


def _same(one: Word, other: Word) -> bool:
    return one.start_seconds - SAME_SECONDS < other.end_seconds and other.start_seconds - SAME_SECONDS < one.end_seconds


def _twice(one: Word, other: Word) -> bool:
    """Whether two words of one recording are one that was said once: the same text, or the same moment."""
    shared = min(one.end_seconds, other.end_seconds) - max(one.start_seconds, other.start_seconds)
    shorter = min(one.end_seconds - one.start_seconds, other.end_seconds - other.start_seconds)
    return one is not other and (shared > shorter / 2 or (one.text == other.text and shared > -SAME_SECONDS))


def _errors(reference: str, words: Sequence[Word]) -> int:
    counts = jiwer.process_words(reference, " ".join(word.text for word in words))
    return int(counts.substitutions + counts.deletions + counts.insertions)


def points(results: Sequence[Result]) -> tuple[float, float, float]:
    """The word error rates in percent: of the recordings, of their clips alone, of each recording as one window."""
    words = sum(result.words for result in results) / 100
    errors = ((r.errors, r.errors_alone, r.errors_uncut) for r in results)
    whole, alone, uncut = (sum(column) / words for column in zip(*errors, strict=True))
    return whole, alone, uncut


def table(results: Sequence[Result]) -> Table:
    counts = ("seams", "overlaps", "lost", "doubled", "added", "changed", "by context")
    shown = Table("joined", "language", "windows", "words", *counts, "WER", "alone", "one window", box=None)
    for key, rows in groupby(results, key=lambda r: (r.join.name, r.language, r.max_seconds)):
        name, language, max_seconds = key
        part = list(rows)
        cells = [sum(r.words for r in part), sum(r.seams for r in part), sum(r.overlaps for r in part)]
        cells += [sum(len(r.lost) for r in part), sum(len(r.doubled) for r in part)]
        cells += [sum(r.added for r in part), sum(r.changed for r in part), sum(r.by_context for r in part)]
        whole, *others = points(part)
        rates = [f"{whole:.2f}", *(f"{other:.2f} ({whole - other:+.2f})" for other in others)]
        shown.add_row(name, language, f"{max_seconds:g} s", *map(str, cells), *rates)
    return shown


def broken(results: Sequence[Result]) -> Iterator[str]:
    """The claims that do not hold."""
    paused = [result for result in results if result.join.pauses]
    in_pauses = sum(result.seams - result.overlaps for result in paused)
    if paused and in_pauses < LEAST_SEAMS:
        yield f"{in_pauses} seams in pauses are too few to say anything: {LEAST_SEAMS}"
    for result in results:
        for what, words in (("lost", result.lost), ("doubled", result.doubled)):
            where = f"{result.join.name}, {result.language}, {result.max_seconds:g} s"
            yield from (f"{what} ({where}): {word.text} at {word.start_seconds:.2f} s" for word in words)
    whole, alone, _ = points([result for result in results if not result.join.trimmed])
    if whole - alone > MAX_POINTS:
        yield f"with pauses, the WER is {whole:.2f} where that of the clips alone is {alone:.2f}"
    whole, _, uncut = points([result for result in results if result.join.trimmed])
    if whole - uncut > MAX_POINTS:
        yield f"with hardly a pause, the WER is {whole:.2f} where that of one window is {uncut:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Words lost or doubled where long recordings are cut into windows.")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE, help="model directory [the embedded one]")
    parser.add_argument("--windows", type=float, nargs="+", default=[30.0, 15.0], help="longest windows, s [30 15]")
    parser.add_argument("--seconds", type=float, default=600.0, help="length of a recording [600]")
    parser.add_argument("--repeats", type=int, default=2, help="recordings of each kind and language [2]")
    parser.add_argument("--seed", type=int, default=0, help="of the order of clips, pauses and noise [0]")
    options = parser.parse_args()
    out = console()
    recognizer = Recognizer.load(options.bundle)
    work = partial(measure, recognizer, options.windows)
    made = list(recordings(JOINS, options.seconds, options.repeats, options.seed))
    with ThreadPoolExecutor(available_cores()) as pool:
        done = list(tqdm(pool.map(work, made), "seams", len(made), unit="recording", leave=False, disable=None))
    order = {join.name: number for number, join in enumerate(JOINS)}
    results = sorted((r for rs in done for r in rs), key=lambda r: (order[r.join.name], r.language, -r.max_seconds))
    out.print(table(results))
    problems = list(broken(results))
    for problem in problems:
        out.print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
