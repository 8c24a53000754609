"""Our own ways: checkpoints of random weights in the published layouts, converted as a user does, and run as served.

Each way takes samples and gives what was heard: windows, features at the true length, the engine, the best path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import roofline
from measuring import Samples
from roofline import CONFORMER, Precision, Size, Work
from tqdm import tqdm

from pipelines import conformer, phowhisper
from pipelines.replicas import conformer as conformer_replicas
from pipelines.replicas import phowhisper as replicas
from predictor import features, search, segments, transducer
from predictor.bundle import Bundle
from predictor.engine import Emission, Engine, Transducer, choice
from predictor.engine.choice import EngineKind
from predictor.engine.whisper import HEAD_WIDTH
from predictor.search import Hypothesis

ROWS_TEXT_LINES = 5_760  # of made-up words, whose tokens are about 4,000 rows of the head
WINDOW_SECONDS = 15.0  # of the way that cuts audio shorter than the model would have to
LANGUAGE = "hi"


@dataclass(frozen=True, slots=True)
class Way:
    """One way from samples to tokens. `work` is what it computes for so many seconds, None where that is not known."""

    transcribe: Callable[[Samples], object]
    work: Callable[[float], Work] | None = None
    precision: Precision = "fp32"
    ours: bool = True


def whisper(size: Size, directory: Path, *, openvino: bool) -> dict[str, Way]:
    """A PhoWhisper-CTC of this size in three bundles, by every engine there is."""
    checkpoint = replicas.write(
        directory / "published", layers=size.layers, width=size.width, heads=size.width // HEAD_WIDTH, mel=size.mel_bins
    )
    text = directory / "text.txt"
    words = islice(map("".join, product(ascii_lowercase, repeat=3)), ROWS_TEXT_LINES)
    text.write_text("\n".join(words) + "\n", encoding="utf-8")
    options = {
        "fp32": phowhisper.Options(weights=True),
        "int8": phowhisper.Options(precision="int8", openvino=openvino),
        "rows": phowhisper.Options(precision="int8", openvino=openvino, rows=text),
    }
    made = {
        name: phowhisper.convert(checkpoint, directory / name, each)
        for name, each in tqdm(options.items(), f"converting {size.name}", unit="bundle", leave=False, disable=None)
    }
    ways = {"ONNX Runtime, fp32": _way(size, made["fp32"], "onnx")}
    ways["PyTorch, fp32"] = _way(size, made["fp32"], "torch")
    rows = f"int8, {len(made['rows'].vocabulary.tokens):,} rows"
    shorter = replace(made["rows"], max_window_seconds=WINDOW_SECONDS)
    bundles = {"int8": made["int8"], rows: made["rows"], f"{rows}, {WINDOW_SECONDS:g} s windows": shorter}
    for name, each in bundles.items():
        ways[f"ONNX Runtime, {name}"] = _way(size, each, "onnx")
        if openvino:
            ways[f"OpenVINO, {name}"] = _way(size, each, "openvino")
    return ways


def indic_conformer(directory: Path) -> dict[str, Way]:
    """An IndicConformer of the published size, as published (fp32) and quantised."""
    conformer_replicas.write(directory / "published", layers=CONFORMER.layers, width=CONFORMER.width, heads=8, pred=640)
    ways = {}
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in tqdm(precisions, "converting the conformer", unit="bundle", leave=False, disable=None):
        options = conformer.Options(precision=precision)
        made = conformer.convert(directory / "published", directory / precision, options)
        loaded = choice.load(made, kind="onnx")
        work = partial(roofline.in_windows, roofline.conformer, made.max_window_seconds)
        ways[f"ONNX Runtime, {precision}, CTC"] = Way(partial(_ctc, made, loaded.engine, LANGUAGE), work, precision)
        assert loaded.transducer
        ways[f"ONNX Runtime, {precision}, RNN-T"] = Way(partial(_rnnt, made, loaded.engine, loaded.transducer))
    return ways


def _way(size: Size, made: Bundle, kind: EngineKind) -> Way:
    engine = choice.load(made, kind=kind).engine
    whole = partial(roofline.whisper, size, len(made.vocabulary.tokens))
    work = partial(roofline.in_windows, whole, made.max_window_seconds)
    return Way(partial(_ctc, made, engine, "vi"), work, "int8" if made.graph.precision == "int8" else "fp32")


def _heard(made: Bundle, engine: Engine, samples: Samples) -> Iterator[Emission]:
    for window in segments.split(samples, made.max_window_seconds):
        yield from engine.infer(features.pad([features.extract(window.samples, made.front_end)]))


def _ctc(made: Bundle, engine: Engine, language: str, samples: Samples) -> list[Hypothesis]:
    allowed, blank_id = made.vocabulary.languages[language], made.vocabulary.blank_id
    return [search.best_path(emission, allowed, blank_id) for emission in _heard(made, engine, samples)]


def _rnnt(made: Bundle, engine: Engine, nets: Transducer, samples: Samples) -> list[Hypothesis]:
    ids, found = made.vocabulary.languages[LANGUAGE], []
    for emission in _heard(made, engine, samples):
        assert emission.encoded is not None
        found.append(transducer.search(emission.encoded, nets, LANGUAGE, ids))
    return found
