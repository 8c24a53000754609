"""What hotwords do to the words of a transcript, which bonus they should have, and what they cost.

In go the clips of the test set; out come three tables. Two of word error rates: `best_path`, then the beam with the
words that best_path got wrong among 20 distractors, then with 20 distractors alone, which must change next to nothing.
Distractors are words of the grammar that the clip does not have, drawn anew several times; in Vietnamese, many differ
from a word of the clip by a tone alone. The bonus is chosen on every second clip and reported on the others. The third
is cost: best_path and the beam in turns over the same emissions, for 10 s of audio.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import jiwer
from measuring import console, cpu_ms, in_turns, samples_of, wall_ms
from rich.table import Table
from tqdm import tqdm

from demo import testset
from demo.sentences import LANGUAGES, load_grammar
from demo.testset import Clip
from predictor import beam, bundle, features, transcript
from predictor.bundle import Bundle
from predictor.engine import Emission
from predictor.engine.onnx import OnnxEngine
from predictor.hotwords import MAX_HOTWORDS
from predictor.search import Hypothesis, best_path
from predictor.settings import EMBEDDED_BUNDLE

SEED = "vani-benchmarks/hotwords"
DISTRACTORS = 20
BONUSES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # nats a letter
MAX_RISE = 0.001  # of the word error rate by distractors alone: a tenth of a point
PER_SECONDS = 10.0
COST_CLIPS = 40
WIDTHS = (4, 16, 64)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip heard by best_path: `missed` are the words of the reference that it got wrong, `others` distractors for
    each round."""

    clip: Clip
    emission: Emission
    plain: str
    missed: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """Word error rates; `helped` with the missed words among distractors, `disturbed` with distractors alone."""

    plain: float
    helped: float
    disturbed: float


def text_of(model: Bundle, hypothesis: Hypothesis) -> str:
    words = transcript.render(hypothesis, model.vocabulary, model.graph.frame_seconds, 0.0)
    return " ".join(word.text for word in words)


def plainly(model: Bundle, language: str, emission: Emission) -> Hypothesis:
    vocabulary = model.vocabulary
    return best_path(emission, vocabulary.languages[language], vocabulary.blank_id, model.graph.repeat_gap_frames)


def missed_words(reference: str, text: str) -> tuple[str, ...]:
    words = reference.split()
    wrong = [
        part for part in jiwer.process_words(reference, text).alignments[0] if part.type in {"substitute", "delete"}
    ]
    return tuple(dict.fromkeys(word for part in wrong for word in words[part.ref_start_idx : part.ref_end_idx]))


def utterances(model: Bundle, rounds: int) -> list[Utterance]:
    """The whole test set, in its order."""
    engine, rng = OnnxEngine(model), Random(SEED)
    words = {language: load_grammar(language).words for language in LANGUAGES}
    result = []
    for clip in tqdm(testset.read(), "emissions", unit="clip", leave=False, disable=None):
        batch = features.pad([features.extract(samples_of(clip), model.front_end)])
        (emission,) = engine.infer(batch)
        plain = text_of(model, plainly(model, clip.language, emission))
        others = [word for word in words[clip.language] if word not in clip.text.split()]
        drawn = tuple(tuple(rng.sample(others, DISTRACTORS)) for _ in range(rounds))
        result.append(Utterance(clip, emission, plain, missed_words(clip.text, plain), drawn))
    return result


def word_error_rate(parts: Sequence[Utterance], texts: Sequence[str]) -> float:
    return float(jiwer.wer([part.clip.text for part in parts], list(texts)))


def rates(model: Bundle, parts: Sequence[Utterance], bonus: float) -> Rates:
    """Means over the rounds."""

    def text(part: Utterance, hotwords: Sequence[str]) -> str:
        gap = model.graph.repeat_gap_frames
        language = part.clip.language
        return text_of(model, beam.search(part.emission, model.vocabulary, language, hotwords, gap, bonus=bonus))

    rounds = range(len(parts[0].others))
    helped = [word_error_rate(parts, [text(p, p.missed + p.others[n]) for p in parts]) for n in rounds]
    disturbed = [word_error_rate(parts, [text(p, p.others[n]) for p in parts]) for n in rounds]
    plain = word_error_rate(parts, [part.plain for part in parts])
    return Rates(plain, sum(helped) / len(helped), sum(disturbed) / len(disturbed))


def row(found: Rates) -> tuple[str, ...]:
    rise = (found.disturbed - found.plain) * 100
    return f"{found.plain:.2%}", f"{found.helped:.2%}", f"{found.disturbed:.2%}", f"{rise:+.2f}"


COLUMNS = ("best_path", "missed words", "distractors", "rise, points")


def choose(model: Bundle, parts: Sequence[Utterance]) -> tuple[float, Table]:
    """The bonus that helps most of those whose distractors stay within MAX_RISE."""
    table = Table("nats a letter", *COLUMNS, title="bonus, on the odd clips", title_justify="left", box=None)
    found = {bonus: rates(model, parts, bonus) for bonus in tqdm(BONUSES, "bonus", leave=False, disable=None)}
    for bonus, result in found.items():
        table.add_row(f"{bonus:g}", *row(result))
    harmless = [bonus for bonus, result in found.items() if result.disturbed - result.plain <= MAX_RISE]
    return min(harmless or BONUSES[:1], key=lambda bonus: found[bonus].helped), table


def report(model: Bundle, parts: Sequence[Utterance], bonus: float) -> Table:
    title = f"{bonus:g} nats a letter, on the even clips"
    table = Table("language", "sentences", "words", *COLUMNS, title=title, title_justify="left", box=None)
    groups = [(language, kind) for language in LANGUAGES for kind in ("natural", "random")]
    for language, kind in groups:
        group = [part for part in parts if (part.clip.language, part.clip.kind) == (language, kind)]
        words = sum(len(part.clip.text.split()) for part in group)
        table.add_row(language, kind, str(words), *row(rates(model, group, bonus)))
    words = sum(len(part.clip.text.split()) for part in parts)
    table.add_row("all", "all", str(words), *row(rates(model, parts, bonus)))
    return table


def cost_cases(model: Bundle, parts: Sequence[Utterance]) -> dict[str, Callable[[], object]]:
    words = {language: load_grammar(language).words for language in LANGUAGES}

    def plain() -> None:
        for part in parts:
            plainly(model, part.clip.language, part.emission)

    def biased(count: int, width: int) -> None:
        gap = model.graph.repeat_gap_frames
        for part in parts:
            language = part.clip.language
            beam.search(part.emission, model.vocabulary, language, words[language][:count], gap, width)

    cases: dict[str, Callable[[], object]] = {"best_path": plain, "beam, no hotwords": partial(biased, 0, 16)}
    cases |= {f"beam of {width}, {DISTRACTORS} hotwords": partial(biased, DISTRACTORS, width) for width in WIDTHS}
    return cases | {f"beam of 16, {MAX_HOTWORDS} hotwords": partial(biased, MAX_HOTWORDS, 16)}


def cost(model: Bundle, parts: Sequence[Utterance], rounds: int) -> Table:
    seconds = sum(part.clip.duration_seconds for part in parts)
    costs = in_turns(cost_cases(model, parts), rounds, "cost")
    columns = (f"CPU ms for {PER_SECONDS:g} s", "ratio", f"wall ms for {PER_SECONDS:g} s")
    table = Table("search", *columns, title="cost", title_justify="left", box=None)
    scale, first = PER_SECONDS / seconds, cpu_ms(costs["best_path"])
    for name, samples in costs.items():
        cpu, wall = cpu_ms(samples), wall_ms(samples)
        table.add_row(name, f"{cpu * scale:.2f}", f"{cpu / first:.1f}", f"{wall * scale:.2f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="What hotwords do to the words of a transcript, and what they cost.")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE, help="model directory [the embedded one]")
    parser.add_argument("--draws", type=int, default=5, help="lists of distractors for each clip [5]")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the cost, of which the median is shown [9]")
    options = parser.parse_args()
    out = console()
    model = bundle.read(options.bundle)
    heard = utterances(model, options.draws)
    bonus, table = choose(model, heard[1::2])
    out.print(table, "")
    out.print(report(model, heard[::2], bonus), "")
    out.print(cost(model, heard[:: max(1, len(heard) // COST_CLIPS)], options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
