"""Samples to features to Batch: what a network is given, by the front end that it was trained with.

mel       what the front ends share
whisper   "whisper-log-mel": Whisper's, and the demo model's
nemo      "nemo-log-mel": NeMo's, as IndicConformer has it
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import FrontEnd
from predictor.features import nemo, whisper
from predictor.features.mel import FRAME_SECONDS, HOP_SAMPLES, SAMPLE_RATE_HZ

__all__ = ["FRAME_SECONDS", "FRONT_ENDS", "HOP_SAMPLES", "SAMPLE_RATE_HZ", "Batch", "extract", "pad"]

Features = NDArray[np.float32]

FRONT_ENDS: dict[str, Callable[[NDArray[np.float32], int], Features]] = {
    "whisper-log-mel": whisper.log_mel,
    "nemo-log-mel": nemo.log_mel,
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances padded to one length: `frames` float32 [B, mel, T], `lengths` int64 [B] <= T."""

    frames: Features
    lengths: NDArray[np.int64]


def extract(samples: NDArray[np.float32], front_end: FrontEnd) -> Features:
    """Mono 16 kHz samples [N] to features [mel, T], a frame each 10 ms."""
    least = int(front_end.pad_seconds * SAMPLE_RATE_HZ)
    if len(samples) < least:
        samples = np.pad(samples, (0, least - len(samples)))
    return FRONT_ENDS[front_end.kind](samples, front_end.mel_bins)


def pad(features: Sequence[Features]) -> Batch:
    """Stack features [mel, T_i] into one Batch, zeros after each one's own length; one alone is not copied."""
    lengths = np.array([f.shape[1] for f in features], dtype=np.int64)
    if len(features) == 1:
        return Batch(features[0][None], lengths)
    frames = np.zeros((len(features), features[0].shape[0], int(lengths.max())), dtype=np.float32)
    for row, feature in zip(frames, features, strict=True):
        row[:, : feature.shape[1]] = feature
    return Batch(frames, lengths)
