"""Error rates of bundles on the embedded test set, through the same Recognizer that serves."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jiwer
from rich.table import Table
from tqdm import tqdm

from demo import testset
from demo.testset import Clip
from predictor.recognizer import Recognizer
from predictor.settings import available_cores

BUNDLES = Path(__file__).parent / "bundles"


@dataclass(frozen=True, slots=True)
class Result:
    """What one bundle made of one clip."""

    clip: Clip
    text: str


def transcribe(directory: Path, clips: Sequence[Clip]) -> list[Result]:
    """Every clip through the bundle in `directory`, each with its language given, a core each."""
    recognizer = Recognizer.load(directory)

    def work(clip: Clip) -> Result:
        return Result(clip, recognizer.transcribe((testset.DIRECTORY / clip.audio).read_bytes(), clip.language).text)

    with ThreadPoolExecutor(available_cores()) as pool:
        return list(tqdm(pool.map(work, clips), directory.name, len(clips), unit="clip", leave=False))


def word_error_rate(results: Iterable[Result]) -> float:
    """Substituted, deleted and inserted words, divided by the words of the references."""
    pairs = [(result.clip.text, result.text) for result in results]
    return float(jiwer.wer([reference for reference, _ in pairs], [text for _, text in pairs]))


def character_error_rate(results: Iterable[Result]) -> float:
    pairs = [(result.clip.text, result.text) for result in results]
    return float(jiwer.cer([reference for reference, _ in pairs], [text for _, text in pairs]))


def table(by_bundle: dict[str, list[Result]]) -> Table:
    """One row for each bundle, language and kind of sentence; natural sentences also by whether the speaker is new."""
    result = Table("bundle", "language", "sentences", "clips", "words", "WER", "CER", "WER known", "WER new", box=None)
    for name, results in by_bundle.items():
        for language, kind in sorted({(r.clip.language, r.clip.kind) for r in results}, reverse=True):
            part = [r for r in results if (r.clip.language, r.clip.kind) == (language, kind)]
            by_speaker = [word_error_rate(r for r in part if r.clip.unseen is unseen) for unseen in (False, True)]
            words = sum(len(r.clip.text.split()) for r in part)
            rates = (word_error_rate(part), character_error_rate(part), *by_speaker)
            result.add_row(name, language, kind, str(len(part)), str(words), *(f"{rate:.2%}" for rate in rates))
    return result
