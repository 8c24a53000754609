"""What each engine costs with the real models' shapes, beside what others run, and beside the least that it could cost.

In go lengths of audio; out come core-ms (CPU time of the whole process, one thread) from samples to tokens, how many
times less that is than what the peers take, and the share of this machine's peak that an engine reaches. All ways of a
model run in turns in one process, over the same samples. Exits with 1 where a target of TARGETS is missed.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import candidates
import peers
import roofline
import torch
from candidates import Way
from measuring import console, cpu_ms, in_turns, recording
from rich.console import Console
from rich.table import Table
from roofline import SIZES, Size, Work

from predictor.engine.whisper import WhisperCtc

CONFORMER = "conformer"
TRANSFORMERS, FASTER_WHISPER, PLAIN = "(a) transformers, padded", "(b) faster-whisper, int8", "(c) plain ONNX, padded"
TOKENS, PADDED_SECONDS = 50_258, 30.0
OPENVINO = find_spec("openvino") is not None
LIBRARIES = ("torch", "onnxruntime", "openvino", "transformers", "ctranslate2", "faster-whisper", "numpy")


@dataclass(frozen=True, slots=True)
class Target:
    """With `seconds` of audio our best way takes a `times`-th of a peer's core-ms, for these models."""

    models: tuple[str, ...]
    seconds: float
    peer: str
    times: float


TARGETS = (
    Target(("tiny", "base", "small"), 5, TRANSFORMERS, 20),
    Target(("tiny", "base", "small"), 5, FASTER_WHISPER, 15),
    Target(("base",), 30, TRANSFORMERS, 2),
    Target(("base",), 30, FASTER_WHISPER, 3 if OPENVINO else 2),
    Target(("tiny",), 30, TRANSFORMERS, 5),
)


@dataclass(frozen=True, slots=True)
class Result:
    """`peak_share` is how much of the machine's peak was used, None where it is not known what was computed."""

    model: str
    way: str
    ours: bool
    seconds: float
    core_ms: float
    peak_share: float | None


def _peers(size: Size, directory: Path, out: Console) -> dict[str, Way]:
    torch.manual_seed(0)
    made = WhisperCtc(size.mel_bins, size.width, size.layers, 4 * size.width, roofline.POSITIONS, TOKENS).eval()
    padded = partial(_padded, size)
    makers: dict[str, Callable[[], peers.Transcribe]] = {
        TRANSFORMERS: lambda: peers.transformers(size, made),
        FASTER_WHISPER: lambda: peers.faster_whisper(size, directory),
        PLAIN: lambda: peers.plain_onnx(size, made, directory),
    }
    ways = {}
    for name, make in makers.items():
        try:
            ways[name] = Way(make(), None if name == FASTER_WHISPER else padded, ours=False)
        except ImportError as error:
            out.print(f"{name} is left out: {error}")
    return ways


def _padded(size: Size, _seconds: float) -> Work:
    """What is computed where everything is made 30 s long."""
    return roofline.whisper(size, TOKENS, PADDED_SECONDS)


def _ways(model: str, directory: Path, out: Console) -> dict[str, Way]:
    if model == CONFORMER:
        return candidates.indic_conformer(directory)
    if not OPENVINO:
        out.print("OpenVINO is left out: pip install 'vani[openvino]'")
    return candidates.whisper(SIZES[model], directory, openvino=OPENVINO) | _peers(SIZES[model], directory, out)


def measured(model: str, ways: dict[str, Way], seconds: Sequence[float], rounds: int) -> Iterator[Result]:
    for length in seconds:
        samples = recording(length)
        cases: dict[str, Callable[[], object]] = {name: partial(way.transcribe, samples) for name, way in ways.items()}
        costs = in_turns(cases | dict(roofline.PEAKS), rounds, f"{model}, {length:g} s")
        # A peak is what was reached at best; a way's cost is what it took as a rule.
        fastest = {name: min(cost.cpu_ms for cost in costs[name]) for name in roofline.PEAKS}
        peaks = {name: roofline.giga_a_second(took) for name, took in fastest.items()}
        for name, way in ways.items():
            took, share = cpu_ms(costs[name]), None
            if way.work:
                share = roofline.least_ms(way.work(length), way.precision, peaks) / took
            yield Result(model, name, way.ours, length, took, share)
        for name, peak in peaks.items():
            yield Result(model, f"peak {name}, G/s", ours=False, seconds=length, core_ms=peak, peak_share=None)


def table(model: str, results: Sequence[Result], seconds: Sequence[float]) -> Table:
    """Core-ms by length, the ratios of both peers to it, and the share of the peak."""
    heads = [f"{length:g} s" for length in seconds]
    result = Table(model, *heads, "times (a)", "times (b)", "of the peak", title_justify="left", box=None)
    by_way: dict[str, dict[float, Result]] = {}
    for each in results:
        by_way.setdefault(each.way, {})[each.seconds] = each
    for way, row in by_way.items():
        cells = [f"{row[length].core_ms:.0f}" for length in seconds]
        ratios = [_ratios(by_way, row, peer, seconds) for peer in (TRANSFORMERS, FASTER_WHISPER)]
        shares = [row[length].peak_share for length in seconds]
        result.add_row(way, *cells, *ratios, " ".join(f"{share:.0%}" for share in shares if share))
    return result


def _ratios(
    by_way: dict[str, dict[float, Result]], row: dict[float, Result], peer: str, seconds: Sequence[float]
) -> str:
    if peer not in by_way or not all(row[length].ours for length in seconds):
        return ""
    return " ".join(f"{by_way[peer][length].core_ms / row[length].core_ms:.3g}" for length in seconds)


def judged(results: Sequence[Result]) -> Iterator[tuple[bool, str]]:
    """Each target that these results can tell of: whether it is met, and a sentence."""
    for target in TARGETS:
        for model in target.models:
            rows = [each for each in results if each.model == model and each.seconds == target.seconds]
            theirs = [each.core_ms for each in rows if each.way == target.peer]
            ours = sorted((each for each in rows if each.ours), key=lambda each: each.core_ms)
            if theirs and ours:
                best = ours[0]
                times = theirs[0] / best.core_ms
                sentence = f"{model}, {target.seconds:g} s: {best.way} is {times:.1f} times {target.peer}"
                yield times >= target.times, f"{sentence} ({target.times:g} asked for)"


def machine() -> dict[str, str]:
    """What ran this: processor and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if flag in flags]
    found = {"processor": names[0] if names else platform.processor(), "instructions": " ".join(known)}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def plot(results: Sequence[Result], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vani"
    from matplotlib import pyplot as plt

    shown = [each for each in results if not each.way.startswith("peak") and not each.way.endswith("windows")]
    models = list(dict.fromkeys(each.model for each in shown))
    figure, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 5.2), squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        rows = [each for each in shown if each.model == model]
        for way in dict.fromkeys(each.way for each in rows):
            own = [each for each in rows if each.way == way]
            style = "o-" if own[0].ours else "s--"
            axis.plot([each.seconds for each in own], [each.core_ms for each in own], style, label=way, ms=4)
        lengths = sorted({each.seconds for each in rows})
        axis.set(xscale="log", yscale="log", title=model, xlabel="seconds of audio", ylabel="core-ms")
        axis.set_xticks(lengths, [f"{length:g}" for length in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> int:
    parser = argparse.ArgumentParser(description="Engines beside others' and beside what the machine could do.")
    parser.add_argument(
        "--models", nargs="+", default=list(SIZES), choices=[*SIZES, CONFORMER], help="what to run [all but conformer]"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[2, 5, 10, 30], help="lengths of audio [2 5 10 30]")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median is shown [7]")
    parser.add_argument("--quick", action="store_true", help="tiny alone, 5 s and 30 s, 3 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for other programs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a plot of them")
    options = parser.parse_args()
    if options.quick:
        options.models, options.seconds, options.rounds = ["tiny"], [5, 30], 3
    torch.set_num_threads(1)
    out, results = console(), []
    out.print(*(f"{name}: {found}" for name, found in machine().items()), "", sep="\n")
    for model in options.models:
        with TemporaryDirectory(prefix="engines-") as directory:
            ways = _ways(model, Path(directory), out)
            found = list(measured(model, ways, options.seconds, options.rounds))
            del ways
        out.print(table(model, found, options.seconds), "")
        results += found
    verdicts = list(judged(results))
    for met, sentence in verdicts:
        out.print(f"{'met   ' if met else 'MISSED'} {sentence}")
    if options.json:
        content = {"machine": machine(), "results": [asdict(each) for each in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(results, options.plot)
    return 0 if all(met for met, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
