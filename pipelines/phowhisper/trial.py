"""Is the graph of a bundle the network of the checkpoint? Both are run on noise, the network in PyTorch.

Noise decides nothing about quality. It finds what a wrong name, a transposed matrix or a lost row changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.findings import Finding
from pipelines.phowhisper.layout import Weights
from predictor.bundle import Bundle, FrontEnd, Graph
from predictor.engine.onnx import OnnxEngine
from predictor.engine.whisper import WhisperCtc, from_state
from predictor.features import SAMPLE_RATE_HZ, extract, pad

# Nats by which a log-probability may differ. fp32: the order of additions, where logits have a hundred. int8: on
# average, what a wrong scale of one matrix exceeds; what int8 costs in words, only a test set can tell.
TOLERANCE = {"fp32": 1e-3, "int8": 0.5}
_SECONDS = (0.1, 0.75, 3.0)


@dataclass(frozen=True, slots=True)
class _Compared:
    """Of each frame [n]: how far the log-probability of the graph's best token is from PyTorch's, how much better than
    that token PyTorch's best is, whether the best of all rows was kept, and what of the probability the others had."""

    apart: NDArray[np.float32]
    missed: NDArray[np.float32]
    kept: NDArray[np.bool_]
    lost: NDArray[np.float32]


def compare(made: Bundle, weights: Weights, kept: Sequence[int]) -> list[Finding]:
    """Findings about a bundle that has been made of the rows `kept` of these weights, which are of all rows."""
    assert isinstance(made.graph, Graph)
    engine, network = OnnxEngine(made), from_state({name: torch.from_numpy(values) for name, values in weights.items()})
    front_end = FrontEnd(made.front_end.kind, made.front_end.mel_bins)  # padding makes silence of most of it
    noises = [extract(_noise(seconds), front_end) for seconds in _SECONDS]
    emissions = engine.infer(pad(noises))
    frames = [
        _compare(emission.log_probs, emission.tokens, _logits(network, noise), np.asarray(kept))
        for emission, noise in zip(emissions, noises, strict=True)
        if emission.tokens is not None
    ]
    compared = _Compared(*(np.concatenate(parts) for parts in zip(*frames, strict=True)))
    limit, exact = TOLERANCE[made.graph.precision], made.graph.precision == "fp32"
    apart = float(compared.apart.max() if exact else compared.apart.mean())
    same = f"{(compared.missed == 0).mean():.1%} of {len(compared.missed)} frames"
    which = "" if exact else " on average"
    findings = [
        Finding("log-probabilities", f"within {limit:g} of PyTorch's{which}", f"{apart:.2g}", apart <= limit),
        Finding("best tokens", "PyTorch's, or as likely", same, not exact or float(compared.missed.max()) <= limit),
    ]
    if len(kept) < len(weights["ctc_head.3.bias"]):
        found = f"the best of {compared.kept.mean():.1%} of frames of noise, and {compared.lost.mean():.1%} of it lost"
        findings.append(Finding("rows kept", "those of the text", found, ok=True, needed=False))
    return findings


def _logits(network: WhisperCtc, features: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits = network.classifier(network(torch.from_numpy(features)[None]))[0].numpy()
    return np.asarray(logits, dtype=np.float32)


def _compare(
    log_probs: NDArray[np.float32], tokens: NDArray[np.int32], logits: NDArray[np.float32], kept: NDArray[np.int64]
) -> tuple[NDArray[np.generic], ...]:
    """The fields of `_Compared`. `logits` [T', all rows]; the graph's tokens [T', K] are numbers of `kept`.

    In double precision: NumPy's sum over 50,000 columns of a selection is off by a thousandth in single.
    """
    own = logits[:, kept]
    total, total_kept = (np.logaddexp.reduce(scores, axis=1, dtype=np.float64) for scores in (logits, own))
    said = np.take_along_axis(own, tokens[:, :1].astype(np.int64), axis=1)[:, 0]
    best = logits.argmax(axis=1)
    return (
        np.abs(log_probs[:, 0] - (said - total_kept)),
        own.max(axis=1) - said,
        np.isin(best, kept),
        -np.expm1(total_kept - total),
    )


def _noise(seconds: float) -> NDArray[np.float32]:
    """Noise that grows louder and softer, samples at 16 kHz."""
    count = int(seconds * SAMPLE_RATE_HZ)
    loudness = 0.1 + 0.1 * np.sin(np.arange(count) / 1_000)
    return (loudness * np.random.default_rng(count).normal(size=count)).astype(np.float32)
