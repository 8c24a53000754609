"""Published weights to a bundle that may be served: converted, measured against its plain form, and only then named.

    convert -> language models, if any -> the length of windows, if asked -> int8, if asked and as good

Which family it is, the files say. What is measured decides: int8 that costs words or gains no time is refused.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipelines import conformer, conformer_layout, parity, phowhisper
from pipelines.errors import Permanent
from pipelines.parity import Clip
from predictor import bundle
from predictor.bundle import Bundle
from predictor.language_model import LanguageModel
from predictor.recognizer import Recognizer

Precision = Literal["fp32", "int8"]
Length = Literal["true", "padded", "auto"]
Make = Callable[[Path, Precision], Bundle]

_MODELS = "language-models"

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True)
class LanguageModels:
    """KenLM files by language, and how much they count (`predictor.language_model`)."""

    files: dict[str, Path] = field(default_factory=dict)
    weight: float = 0.5
    word_bonus: float = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made. `testset` is needed where something is decided by measuring; `max_rise_points` is how much
    worse a word error rate may be, in points of 100, and `least_speedup` how many times faster int8 must be."""

    name: str | None = None
    version: str = "1"
    repository: str | None = None
    revision: str = ""
    precision: Precision = "fp32"
    testset: Path | None = None
    max_rise_points: float = parity.MAX_RISE_POINTS
    least_speedup: float = parity.LEAST_SPEEDUP
    tokenizer: Path | None = None
    rows: Path | None = None
    length: Length = "true"
    weights: bool = False
    openvino: bool = False
    language_models: LanguageModels = field(default_factory=LanguageModels)


def convert(source: Path, out: Path, wanted: Wanted) -> Bundle:
    """Make the bundle `out`, which must not exist. Raises Permanent or InvalidBundle; nothing is left half-made."""
    if out.exists():
        raise Permanent(f"{out} exists already")
    if not source.exists():
        raise Permanent(f"{source} is not there")
    decided = wanted.precision == "int8" or wanted.length == "auto"
    if decided and wanted.testset is None:
        raise Permanent("int8 and the length of windows are decided by measuring: a test set is needed")
    clips = parity.read(wanted.testset) if decided and wanted.testset else []
    make = _indic_conformer(source, wanted) if conformer_layout.is_one(source) else _phowhisper(source, wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made = _with_language_models(make(Path(work, "fp32"), "fp32"), wanted.language_models)
        if wanted.length == "auto":
            made = _shorter_if_as_good(made, clips, wanted)
        if wanted.precision == "int8":
            smaller = _with_language_models(make(Path(work, "int8"), "int8"), wanted.language_models)
            smaller = _amended(smaller, pad_seconds=made.front_end.pad_seconds)
            _refuse_worse(made, smaller, clips, wanted)
            made = smaller
        made.directory.rename(out)
    return replace(made, directory=out)


def _indic_conformer(source: Path, wanted: Wanted) -> Make:
    others = {"--tokenizer": wanted.tokenizer, "--rows": wanted.rows, "--weights": wanted.weights}
    others |= {"--openvino": wanted.openvino, "--length": wanted.length != "true"}
    asked = [option for option, value in others.items() if value]
    if asked:
        raise Permanent(f"{', '.join(asked)}: an IndicConformer is served as it is published, and has no such choice")
    options = conformer.Options(version=wanted.version, revision=wanted.revision)
    options = replace(options, name=wanted.name or options.name, repository=wanted.repository or options.repository)
    return lambda out, precision: conformer.convert(source, out, replace(options, precision=precision))


def _phowhisper(source: Path, wanted: Wanted) -> Make:
    options = phowhisper.Options(
        version=wanted.version,
        revision=wanted.revision,
        length="true" if wanted.length == "true" else "padded",
        tokenizer=wanted.tokenizer,
        rows=wanted.rows,
        weights=wanted.weights,
        openvino=wanted.openvino,
    )
    options = replace(options, name=wanted.name or options.name, repository=wanted.repository or options.repository)
    return lambda out, precision: phowhisper.convert(source, out, replace(options, precision=precision))


def _with_language_models(made: Bundle, models: LanguageModels) -> Bundle:
    if not models.files:
        return made
    unknown = sorted(models.files.keys() - set(made.languages))
    if unknown:
        raise Permanent(f"a language model is for {', '.join(unknown)}, and the model has {', '.join(made.languages)}")
    (made.directory / _MODELS).mkdir()
    files: dict[str, str] = {}
    for code, path in models.files.items():
        files[code] = f"{_MODELS}/{code}{path.suffix}"
        try:
            shutil.copyfile(path, made.path(files[code]))
        except OSError as error:
            raise Permanent(f"{path} cannot be read") from error
        LanguageModel.load(made.path(files[code]), models.weight, models.word_bonus)
    return _amended(made, models=replace(models, files={code: Path(file) for code, file in files.items()}))


def _amended(made: Bundle, pad_seconds: float | None = None, models: LanguageModels | None = None) -> Bundle:
    """The bundle with another length of windows or other language models, whose files are there, written anew."""
    graph, front_end = made.graph, made.front_end
    if pad_seconds is not None:
        front_end = replace(front_end, pad_seconds=pad_seconds)
    if models:
        graph = replace(
            graph,
            language_models={code: str(file) for code, file in models.files.items()},
            language_model_weight=models.weight,
            word_bonus=models.word_bonus,
        )
    return bundle.write(
        made.directory,
        name=made.name,
        version=made.version,
        family=made.family,
        max_window_seconds=made.max_window_seconds,
        sample_rate_hz=made.sample_rate_hz,
        front_end=front_end,
        graph=graph,
        vocabulary=made.vocabulary,
        source=made.source,
    )


def _shorter_if_as_good(padded: Bundle, clips: Sequence[Clip], wanted: Wanted) -> Bundle:
    """The bundle that hears windows at their own length, unless that costs words."""
    reference = Recognizer.load(padded.directory)
    short = replace(reference, bundle=replace(padded, front_end=replace(padded.front_end, pad_seconds=0.0)))
    found = parity.compare(reference, short, clips)
    logger.info("windows at their own length instead of padded: %s", found)
    problems = list(parity.problems(found, wanted.max_rise_points, 1.0))
    for problem in problems:
        logger.info("windows are padded: at their own length, %s", problem)
    return padded if problems else _amended(padded, pad_seconds=0.0)


def _refuse_worse(plain: Bundle, smaller: Bundle, clips: Sequence[Clip], wanted: Wanted) -> None:
    found = parity.compare(Recognizer.load(plain.directory), Recognizer.load(smaller.directory), clips)
    logger.info("int8 instead of fp32: %s", found)
    problems = list(parity.problems(found, wanted.max_rise_points, wanted.least_speedup))
    if problems:
        raise Permanent(f"int8 is refused: {'; '.join(problems)} ({found})")
