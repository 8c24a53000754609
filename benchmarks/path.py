"""Where a request's time goes: decode, features, inference, search and render.

In go a short and a long recording, as files of four formats; out comes the CPU time of each stage of the request path
and its share of the whole, and our features beside those of transformers' WhisperFeatureExtractor, the reference.
Stages are timed one at a time on one thread, with the very calls that `Recognizer` makes, because in a server that is
busy they overlap; CPU time, because stages that wait for nothing differ in nothing else.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measuring import Samples, console, cpu_ms, encoded, in_turns, recording
from rich.table import Table

from predictor import features, search, transcript
from predictor.engine import Emission
from predictor.features import SAMPLE_RATE_HZ, whisper
from predictor.recognizer import Recognizer
from predictor.segments import Window
from predictor.settings import EMBEDDED_BUNDLE
from predictor.transcript import Word

FORMATS = {  # as libsndfile names containers and codecs
    "WAV, 16 bit": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "Ogg Opus": ("OGG", "OPUS"),
}
STAGES = ("features", "inference", "search and render")
REPEATS = 5  # calls in one sample: some stages take less than a clock can tell


def repeated(work: Callable[[], object]) -> Callable[[], None]:
    def all_of_them() -> None:
        for _ in range(REPEATS):
            work()

    return all_of_them


def features_of(recognizer: Recognizer, windows: list[Window]) -> list[features.Batch]:
    return [features.pad([recognizer.extract(window)]) for window in windows]


def words_of(recognizer: Recognizer, windows: list[Window], outputs: list[Emission]) -> list[Word]:
    """Everything after the network, the identification of the language with it."""
    vocabulary, words = recognizer.bundle.vocabulary, []
    language: str | None = None
    for window, emission in zip(windows, outputs, strict=True):
        language = language or recognizer.identify(emission)
        if language is not None:
            hypothesis = search.best_path(emission, vocabulary.languages[language], vocabulary.blank_id)
            seconds = recognizer.bundle.graph.frame_seconds
            words += transcript.render(hypothesis, vocabulary, seconds, window.start_seconds)
    return words


def stages(recognizer: Recognizer, samples: Samples) -> dict[str, Callable[[], object]]:
    """Decoding of each format, under its name, and the stages that follow; each has its input ready."""
    files = {name: encoded(samples, *kind) for name, kind in FORMATS.items()}
    cases: dict[str, Callable[[], object]] = {
        name: repeated(partial(recognizer.decode, file)) for name, file in files.items()
    }
    windows = recognizer.split(recognizer.decode(files["WAV, 16 bit"]))
    batches = features_of(recognizer, windows)
    outputs = [recognizer.engine.infer(batch)[0] for batch in batches]
    work = (
        partial(features_of, recognizer, windows),
        lambda: [recognizer.engine.infer(batch) for batch in batches],
        partial(words_of, recognizer, windows, outputs),
    )
    return cases | {stage: repeated(call) for stage, call in zip(STAGES, work, strict=True)}


def path_table(recognizer: Recognizer, seconds: float, rounds: int) -> Table:
    costs = in_turns(stages(recognizer, recording(seconds)), rounds, f"path, {seconds:g} s")
    cpu = {name: cpu_ms(samples) / REPEATS for name, samples in costs.items()}
    table = Table("format", "decode", *STAGES, "whole", title=f"a recording of {seconds:g} s: CPU ms (share)", box=None)
    table.title_justify = "left"
    for name in FORMATS:
        parts = [cpu[name], *(cpu[stage] for stage in STAGES)]
        whole = sum(parts)
        table.add_row(name, *(f"{part:.2f} ({part / whole:.0%})" for part in parts), f"{whole:.2f}")
    return table


def front_end_table(lengths: list[float], rounds: int) -> Table:
    """Our features beside the reference's, which is given one thread of torch, as we have one."""
    import torch
    from transformers import WhisperFeatureExtractor

    torch.set_num_threads(1)
    extract = partial(WhisperFeatureExtractor(), sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
    table = Table("front end", *(f"{seconds:g} s" for seconds in lengths), title="features: CPU ms (ratio)", box=None)
    table.title_justify = "left"
    columns = []
    for seconds in lengths:
        samples = recording(seconds)
        cases: dict[str, Callable[[], object]] = {
            "ours": repeated(partial(whisper.log_mel, samples)),
            "transformers, no padding": repeated(partial(extract, samples, padding="do_not_pad")),
            "transformers, its default (30 s)": repeated(partial(extract, samples)),
        }
        difference = np.abs(extract(samples, padding="do_not_pad").input_features[0] - whisper.log_mel(samples)).max()
        columns.append((in_turns(cases, rounds, f"features, {seconds:g} s"), difference))
    for name in columns[0][0]:
        cells = [(cpu_ms(costs[name]) / REPEATS, cpu_ms(costs["ours"]) / REPEATS) for costs, _ in columns]
        table.add_row(name, *(f"{cpu:.2f} ({cpu / ours:.2f})" for cpu, ours in cells))
    table.add_row("largest difference", *(f"{difference:.1e}" for _, difference in columns))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Where a request's time goes, stage by stage.")
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE, help="model directory [the embedded one]")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 30.0], help="recordings' lengths [3 30]")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median is shown [9]")
    options = parser.parse_args()
    out = console()
    recognizer = Recognizer.load(options.bundle)
    for seconds in options.seconds:
        out.print(path_table(recognizer, seconds, options.rounds), "")
    out.print(front_end_table(options.seconds, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
