"""Samples to log-mel features as NeMo's `AudioToMelSpectrogramPreprocessor` of 2023 makes them, in NumPy.

It is what IndicConformer was trained on, and what its TorchScript preprocessor computes: pre-emphasis, the power
spectrum of a 25 ms Hann window centred in 32 ms, Slaney mel filters, natural logarithm, and each mel bin brought to
mean 0 and deviation 1 over the utterance. Later NeMo pads with zeros instead of reflecting and counts one frame less. A
test holds the parity with torch at 1e-4.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from predictor.features.mel import HOP_SAMPLES, mel_filters

N_FFT = 512  # 32 ms
WINDOW_SAMPLES = 400  # 25 ms
SHORTEST_SAMPLES = 1_600  # 0.1 s: of less, a mean and a deviation say nothing, and neither does the model

_PRE_EMPHASIS = 0.97
_GUARD = 2.0**-24  # added before the logarithm
_LEAST_DEVIATION = 1e-5
_EDGE = N_FFT // 2
_OFFSET = (N_FFT - WINDOW_SAMPLES) // 2
# Frames worked on at once: they stay in the cache, and the product with the filters is too small for BLAS to start its
# threads, which on busy cores cost ten times what they save.
_BLOCK_FRAMES = 16


@cache
def _window() -> NDArray[np.float32]:
    """The symmetric Hann window, which ends at zero on both sides."""
    return np.asarray(np.hanning(WINDOW_SAMPLES), dtype=np.float32)


def log_mel(samples: NDArray[np.float32], mel_bins: int = 80) -> NDArray[np.float32]:
    """Mono 16 kHz samples [N] within [-1, 1] to normalised log-mel frames [mel_bins, T], T = N // 160 + 1.

    Frame t is centred on sample 160 t. Audio shorter than 0.1 s is extended with silence to that length, where T is 11:
    what the model makes of it is not worth reading, but nothing fails.
    """
    if len(samples) < SHORTEST_SAMPLES:
        samples = np.pad(samples, (0, SHORTEST_SAMPLES - len(samples)))
    windows = _windows(samples)
    filters = mel_filters(mel_bins, N_FFT).T
    mel = np.empty((len(windows), mel_bins), dtype=np.float32)
    padded = np.zeros((_BLOCK_FRAMES, N_FFT), dtype=np.float32)
    spectrum = np.empty((_BLOCK_FRAMES, N_FFT // 2 + 1), dtype=np.complex64)
    for first in range(0, len(windows), _BLOCK_FRAMES):
        block = windows[first : first + _BLOCK_FRAMES]
        # Where in the 512 samples the window lies turns phases alone, so it may as well start them.
        np.multiply(block, _window(), out=padded[: len(block), :WINDOW_SAMPLES])
        bins = spectrum[: len(block)]
        np.fft.rfft(padded[: len(block)], out=bins)  # type: ignore[arg-type]  # the stubs know complex128 alone
        np.matmul(bins.real**2 + bins.imag**2, filters, out=mel[first : first + len(block)])
    # log(mel + guard), less the logarithm of the guard, which the mean takes away: near 0 float32 is at its finest.
    return _normalised(np.log(np.ascontiguousarray(mel.T) * np.float32(1 / _GUARD) + 1))


def _windows(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The samples under each frame's window, after pre-emphasis: a view [T, WINDOW_SAMPLES]."""
    emphasised = np.array(samples, dtype=np.float32)
    emphasised[1:] -= np.float32(_PRE_EMPHASIS) * samples[:-1]
    reflected = np.pad(emphasised, _EDGE, mode="reflect")[_OFFSET:]
    windows = np.lib.stride_tricks.sliding_window_view(reflected, WINDOW_SAMPLES)[::HOP_SAMPLES]
    return windows[: len(samples) // HOP_SAMPLES + 1]


def _normalised(log: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row to mean 0 and (unbiased) deviation 1, in place.

    The mean is taken in float64: in float32 that of a constant row may miss the constant by a rounding, which the
    division would blow up.
    """
    log -= log.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    variance = np.einsum("mt,mt->m", log, log) / (log.shape[1] - 1)
    log /= (np.sqrt(variance) + _LEAST_DEVIATION)[:, None]
    return log
