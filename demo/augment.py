"""What rooms, microphones and telephones do to speech, so that the model has heard some of it."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from predictor.features import SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

# SpecAugment (Park et al. 2019), light: a network this small is short of capacity, not of difficulty.
MEL_MASKS, MEL_MASK_BINS = 1, 10
TIME_MASKS, TIME_MASK_SHARE = 1, 0.05
LOW_PASSED_SHARE = 0.5


def _edges(samples: Samples, rng: Generator) -> Samples:
    before, after = rng.integers(0, SAMPLE_RATE_HZ // 5, 2)
    return np.pad(samples, (int(before), int(after)))


def _reverberate(samples: Samples, rng: Generator) -> Samples:
    """Convolve with exponentially decaying noise of 0.1 to 0.4 s (to -60 dB) behind a direct path."""
    seconds = rng.uniform(0.1, 0.4)
    length = int(seconds * SAMPLE_RATE_HZ)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = 1 << (len(samples) + length - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return np.asarray(wet[: len(samples)], dtype=np.float32)


def _telephone(samples: Samples, rng: Generator) -> Samples:
    """Remove everything above a cut-off of 3.4 to 4 kHz, as an 8 kHz recording would."""
    spectrum = np.fft.rfft(samples)
    spectrum[int(len(spectrum) * rng.uniform(3_400, 4_000) / (SAMPLE_RATE_HZ / 2)) :] = 0
    return np.asarray(np.fft.irfft(spectrum, len(samples)), dtype=np.float32)


def _noise(samples: Samples, rng: Generator) -> Samples:
    """Add white or low-passed noise at 10 to 40 dB below the speech."""
    noise = rng.standard_normal(len(samples)).astype(np.float32)
    if rng.random() < LOW_PASSED_SHARE:
        width = int(rng.integers(2, 12))
        noise = np.convolve(noise, np.ones(width, np.float32), mode="same").astype(np.float32)
    power = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(10, 40) / 20)
    return np.asarray(samples + noise * (power / np.sqrt(np.mean(noise**2))), dtype=np.float32)


def augment(samples: Samples, rng: Generator) -> Samples:
    """One utterance [N] as another place and device would have recorded it; the length may grow by up to 0.4 s."""
    samples = _edges(samples, rng)
    for chance, effect in ((0.15, _reverberate), (0.1, _telephone), (0.4, _noise)):
        if rng.random() < chance:
            samples = effect(samples, rng)
    return np.asarray(samples * 10 ** (-rng.uniform(0, 20) / 20), dtype=np.float32)


def mask(features: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """SpecAugment: blank bands of mel bins and of time in log-mel frames [mel, T], in place."""
    fill = features.mean()
    for _ in range(MEL_MASKS):
        width = int(rng.integers(0, MEL_MASK_BINS + 1))
        start = int(rng.integers(0, features.shape[0] - width + 1))
        features[start : start + width] = fill
    for _ in range(TIME_MASKS):
        width = int(rng.integers(0, int(features.shape[1] * TIME_MASK_SHARE) + 1))
        start = int(rng.integers(0, features.shape[1] - width + 1))
        features[:, start : start + width] = fill
    return features
