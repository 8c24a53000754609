"""What batches do for the PyTorch engine: audio seconds a second by rows in a call, and whether it hears the same.

In goes a PhoWhisper-CTC of random weights; out comes a table by batch size, in bf16 and fp32, on the wall's clock, with
how often the likeliest token is the one that fp32 finds on the CPU. A batch is of one length, as the scheduler makes
them. Ends with a sentence where there is no CUDA device; `--device cpu` runs it all the same.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from measuring import console, recording
from rich.table import Table
from roofline import SIZES
from tqdm import tqdm

from pipelines import phowhisper
from pipelines.replicas import phowhisper as replicas
from predictor import features
from predictor.engine.torch import Precision, TorchEngine, has_cuda
from predictor.engine.whisper import HEAD_WIDTH
from predictor.features import Batch
from predictor.features.mel import SAMPLE_RATE_HZ

PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def batch(rows: int, seconds: float) -> Batch:
    """Rows of speech that differ: each begins a little later in one recording."""
    samples = recording(seconds + 0.01 * rows)
    length, step = round(seconds * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ // 100
    return features.pad([features.whisper.log_mel(samples[row * step :][:length]) for row in range(rows)])


def real_time(engine: TorchEngine, work: Batch, seconds: float, rounds: int) -> float:
    """Seconds of audio a second, the median of some rounds after two that are not counted."""
    took = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        engine.infer(work)  # its results are on the CPU: nothing is left to wait for
        took.append(time.perf_counter() - began)
    return len(work.lengths) * seconds / median(took[2:])


def agreement(engine: TorchEngine, reference: TorchEngine, work: Batch) -> float:
    """The share of frames in which both find the same token the likeliest."""
    found, expected = (
        np.concatenate([each.tokens[:, 0] for each in which.infer(work) if each.tokens is not None])
        for which in (engine, reference)
    )
    return float(np.mean(found == expected))


def table(engines: dict[Precision, TorchEngine], sizes: Sequence[int], seconds: float, rounds: int) -> Table:
    result = Table("rows", *(f"{name}, times real time" for name in engines), title_justify="left", box=None)
    for rows in tqdm(sizes, "batches", unit="batch", leave=False, disable=None):
        work = batch(rows, seconds)
        result.add_row(str(rows), *(f"{real_time(each, work, seconds, rounds):.0f}" for each in engines.values()))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="The PyTorch engine by batch size.")
    parser.add_argument("--model", default="base", choices=list(SIZES), help="what to run [base]")
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio in a row [10]")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="of a call [1 ... 64]")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median is shown [9]")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where [cuda]")
    options = parser.parse_args()
    out, device = console(), options.device
    if device == "cuda" and not has_cuda():
        out.print("there is no CUDA device: nothing was measured")
        return 0
    size = SIZES[options.model]
    with TemporaryDirectory(prefix="gpu-") as directory:
        checkpoint = replicas.write(
            Path(directory, "published"), layers=size.layers, width=size.width, heads=size.width // HEAD_WIDTH
        )
        made = phowhisper.convert(checkpoint, Path(directory, "bundle"), phowhisper.Options(weights=True))
        load = partial(TorchEngine, made)
        engines = {name: load(device=device, precision=name) for name in PRECISIONS}
        reference = load(device="cpu", precision="fp32")
    out.print(table(engines, options.rows, options.seconds, options.rounds), "")
    for name, engine in engines.items():
        out.print(
            f"{name}: {agreement(engine, reference, batch(4, 5.0)):.1%} of the tokens are those of the CPU in fp32"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
