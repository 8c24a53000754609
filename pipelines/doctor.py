"""Every assumption about a model, confirmed or named: what `python -m pipelines doctor` shows.

Of published weights: names, shapes, ids, graphs, as the conversion checks them. Of a bundle: its files, what its
networks make of noise and silence, and over a test set its error rate, its speed and its word times.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines import alignment, parity
from pipelines.errors import Permanent
from pipelines.findings import Finding
from pipelines.parity import Clip
from predictor import features, search
from predictor.engine import Emission
from predictor.features import SAMPLE_RATE_HZ
from predictor.recognizer import Recognizer
from predictor.segments import Window
from predictor.verify import MANIFEST

_NOISE_SECONDS = (1.0, 3.7, 6.0)
_TOLERANCE = 1e-3
_LEAST_TESTSET_WORDS = 50
_ALIGNED = 20  # clips whose word times are looked at


def inspect(path: Path, testset: Path | None = None) -> list[Finding]:
    """The findings about a bundle, over a test set if there is one, or about published weights, a directory or a file.

    Raises Permanent where it is neither, and InvalidBundle where a bundle is not what its manifest says.
    """
    if (path / MANIFEST).is_file():
        recognizer = Recognizer.load(path)
        over = inspect_over(recognizer, parity.read(testset)) if testset else ()
        return [*inspect_bundle(recognizer), *over]
    from pipelines import conformer, conformer_layout, phowhisper

    if not path.exists():
        raise Permanent(f"{path} is not there")
    if testset:
        raise Permanent(f"{path} is no bundle: convert it, and try the bundle on the test set")
    return conformer.inspect(path) if conformer_layout.is_one(path) else phowhisper.inspect(path)


def to_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, and what it comes to."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{_mark(finding)} {finding.name:<{width}}  {_sentence(finding)}" for finding in findings]
    wrong = [finding for finding in findings if not finding.ok]
    fatal = sum(finding.needed for finding in wrong)
    end = f"{len(findings)} looked at, {len(wrong)} other than expected, {fatal} of them in the way of serving it"
    return "\n".join([*lines, "", end])


def _mark(finding: Finding) -> str:
    return "ok " if finding.ok else "NO " if finding.needed else "(!)"


def _sentence(finding: Finding) -> str:
    return finding.found if finding.ok else f"{finding.found} (expected: {finding.expected})"


def to_json(findings: Sequence[Finding]) -> str:
    """A list of objects with the fields of Finding."""
    return json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1)


def inspect_bundle(recognizer: Recognizer) -> Iterator[Finding]:
    """What can be asked of a loaded bundle without recordings. That it is loaded says that its files are what the
    manifest says, and that its graphs take and give what it names."""
    found = recognizer.bundle
    yield Finding("files", "as the manifest says", f"{found.digest[:19]}…", ok=True)
    yield Finding("languages", "at least one", ", ".join(found.languages), bool(found.languages))
    noise = np.random.default_rng(0).normal(0, 0.1, int(max(_NOISE_SECONDS) * SAMPLE_RATE_HZ)).astype(np.float32)
    windows = [Window(0.0, noise[: int(seconds * SAMPLE_RATE_HZ)]) for seconds in _NOISE_SECONDS]
    emissions = [_emission(recognizer, window) for window in windows]
    yield _frames(recognizer, emissions)
    yield _probabilities(emissions)
    yield _rows(recognizer, windows, emissions)
    silence = Window(0.0, np.zeros(3 * SAMPLE_RATE_HZ, np.float32))
    for decoding in recognizer.decodings:
        words, _ = recognizer.recognize(silence, found.languages[0], decoding=decoding)
        said = " ".join(word.text for word in words) or "nothing"
        yield Finding(f"silence, {decoding}", "nothing said", said[:60], not words, needed=False)


def inspect_over(recognizer: Recognizer, clips: Sequence[Clip]) -> Iterator[Finding]:
    """What a test set shows: the word error rate, the speed, and the share of clips of which nothing was heard."""
    found = parity.compare(recognizer, recognizer, clips)
    rate = 100 * found.reference_errors / found.words
    yield Finding("words", f"at least {_LEAST_TESTSET_WORDS}", str(found.words), found.words >= _LEAST_TESTSET_WORDS)
    yield Finding("word error rate", "below 50 %", f"{rate:.2f} %", rate < 50, needed=False)  # noqa: PLR2004
    windows = [window for clip in clips[:_ALIGNED] for window in _windows(recognizer, clip)]
    yield _times(recognizer, [_emission(recognizer, window) for window in windows])
    same = found.disagreements == 0
    yield Finding("heard twice", "the same words", f"{found.disagreements} words different", same)
    seconds = found.reference_seconds + found.candidate_seconds
    yield Finding("processor time", "", f"{500 * seconds / found.clips:.0f} ms a clip", ok=True, needed=False)


def _windows(recognizer: Recognizer, clip: Clip) -> list[Window]:
    return recognizer.split(recognizer.decode(clip.audio.read_bytes()))


def _emission(recognizer: Recognizer, window: Window) -> Emission:
    (emission,) = recognizer.engine.infer(features.pad([recognizer.extract(window)]))
    return emission


def _frames(recognizer: Recognizer, emissions: Sequence[Emission]) -> Finding:
    least = recognizer.bundle.front_end.pad_seconds
    step = recognizer.bundle.graph.frame_seconds
    lengths = [len(emission.log_probs) * step for emission in emissions]
    ok = all(abs(max(s, least) - length) <= 2 * step for s, length in zip(_NOISE_SECONDS, lengths, strict=True))
    shown = ", ".join(f"{length:.2f} s" for length in lengths)
    wanted = ", ".join(f"{max(seconds, least):g} s" for seconds in _NOISE_SECONDS)
    return Finding("length of what comes out", wanted, shown, ok)


def _probabilities(emissions: Sequence[Emission]) -> Finding:
    totals = np.concatenate([np.exp(emission.log_probs).sum(axis=1) for emission in emissions])
    wanted, ok = "1 in each frame", bool(np.isfinite(totals).all() and np.abs(totals - 1).max() < _TOLERANCE)
    if emissions[0].tokens is not None:
        wanted, ok = "at most 1 in each frame", bool(np.isfinite(totals).all() and totals.max() < 1 + _TOLERANCE)
    return Finding("sum of probabilities", wanted, f"{totals.min():.4f} to {totals.max():.4f}", ok)


def _rows(recognizer: Recognizer, windows: Sequence[Window], emissions: Sequence[Emission]) -> Finding:
    together = recognizer.engine.infer(features.pad([recognizer.extract(window) for window in windows]))
    differences = [
        float(np.abs(one.log_probs[:, 0] - other.log_probs[:, 0]).max())
        for one, other in zip(emissions, together, strict=True)
        if one.log_probs.shape == other.log_probs.shape
    ]
    ok = len(differences) == len(windows) and max(differences) < _TOLERANCE
    shown = f"{max(differences, default=np.inf):.1e} apart"
    return Finding("windows in one batch", "as each alone", shown, ok)


def _times(recognizer: Recognizer, emissions: Sequence[Emission]) -> Finding:
    """The times that the search gives tokens, against a forced alignment of the same tokens."""
    name, align = alignment.aligner()
    vocabulary, worst, tokens = recognizer.bundle.vocabulary, 0, 0
    allowed = vocabulary.languages[recognizer.bundle.languages[0]]
    for emission in emissions:
        path = search.best_path(emission, allowed, vocabulary.blank_id)
        ids, scores = search.competing(emission, allowed, vocabulary.blank_id)
        blank = int(np.searchsorted(ids, vocabulary.blank_id))
        frames = align(np.maximum(scores, -1e4), np.searchsorted(ids, path.tokens).tolist(), blank)
        starts = np.flatnonzero((frames != np.append(-1, frames[:-1])) & (frames != blank))
        tokens += len(starts)
        worst = max(worst, int(np.abs(starts - path.starts).max(initial=0)))
    shown = f"{worst} frames apart at most, {tokens} tokens"
    return Finding("times of tokens", f"as {name} aligns them", shown, worst == 0)
