"""Whisper's log-mel spectrogram, in NumPy, at the true length.

The reference is OpenAI Whisper's `log_mel_spectrogram` as transformers' `WhisperFeatureExtractor` computes it (natural
order: window, power spectrum, Slaney mel filters, log10, clamp to eight decades below the loudest bin, scale). Its 30 s
of padding is a bundle's choice (`FrontEnd.pad_seconds`): a window as long as its audio is the largest saving of the
whole path on a CPU. A test holds the parity at 1e-4.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from predictor.features.mel import HOP_SAMPLES, apply, mel_filters

N_FFT = 400  # 25 ms

_FLOOR = 1e-10
_DYNAMIC_RANGE = 8.0  # decades kept below the loudest bin


@cache
def _window() -> NDArray[np.float32]:
    """The periodic Hann window (the FFT's, not the symmetric one)."""
    return np.asarray(np.hanning(N_FFT + 1)[:-1], dtype=np.float32)


def log_mel(samples: NDArray[np.float32], mel_bins: int = 80) -> NDArray[np.float32]:
    """Mono 16 kHz samples [N] to log-mel frames [mel_bins, T], T = N // 160, about within [-1.5, 1.6].

    Audio shorter than one analysis window (25 ms) is extended with silence to that length, where T is 2.
    """
    if samples.shape[0] < N_FFT:
        samples = np.pad(samples, (0, N_FFT - samples.shape[0]))
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_SAMPLES][:-1]
    spectrum = np.fft.rfft(windows * _window(), axis=-1)
    power = np.asarray(spectrum.real**2 + spectrum.imag**2, dtype=np.float32)
    mel = apply(mel_filters(mel_bins, N_FFT), power)
    log = np.log10(np.maximum(mel, _FLOOR, out=mel), out=mel)
    np.maximum(log, log.max() - _DYNAMIC_RANGE, out=log)
    return np.asarray((log + 4.0) / 4.0, dtype=np.float32)
