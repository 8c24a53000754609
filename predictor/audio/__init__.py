"""Audio bytes to a Waveform: mono float32 at 16 kHz, in bounded memory. The only door to soundfile, av and soxr.

    containers   bytes -> Container: sniff                               [stdlib]
    integrity    is all of it there? chunk sizes, page checksums         [stdlib]
    readers      Container -> blocks, mixed to mono, at their own rate   [soundfile, av]

Then here: blocks -> limited -> resampled -> Waveform. Everything flows in blocks, so a few kilobytes that unpack to
ten hours cost no more than the limit allows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import soxr
from numpy.typing import NDArray

from predictor.audio.containers import sniff
from predictor.audio.integrity import checked_rate, whole
from predictor.audio.readers import Block, Samples, Source, opened
from predictor.errors import AudioTooLong, InvalidAudio, PredictorError
from predictor.features import SAMPLE_RATE_HZ

__all__ = ["Pcm", "Waveform", "decode", "from_pcm"]

_MAX_OFFSET = 0.01  # of full scale; a sound recording is at a hundredth of it
_OFFSET_SAMPLES = SAMPLE_RATE_HZ // 2  # in less, a constant may be a low sound
_ROUNDING_SECONDS = 1e-6  # what adding up many blocks may err by
_PCM_SCALES = {"f": (0, 1), "i": (0, 1 / (1 << 15)), "u": (1 << 7, 1 / (1 << 7))}  # by kind of number: offset, scale


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio at SAMPLE_RATE_HZ: `samples` float32 [N], N >= 1, finite, within [-1, 1].

    `container` is the name of the file's format, or "PCM" where there was no file.
    """

    samples: Samples
    container: str = "PCM"

    @property
    def duration_seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True, eq=False)
class Pcm:
    """Mono samples [N] as a tensor carries them: float32 within [-1, 1], int16, or uint8 with silence at 128."""

    samples: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.uint8]
    rate_hz: int


def decode(data: bytes | bytearray | memoryview, max_seconds: float) -> Waveform:
    """Decode a whole file of any container in `containers`, any sample rate in the limits and any channel count.

    Raises UnsupportedAudio for bytes or codecs that no reader knows, AudioTooLong as soon as `max_seconds` are
    exceeded, InvalidAudio for all else that is wrong with the bytes; nothing else. Safe to call from many threads.
    """
    if not data:
        raise InvalidAudio("it is empty")
    container, body = sniff(bytes(data))
    body = whole(container, body)
    try:
        with opened(container, body) as source, np.errstate(over="ignore", invalid="ignore"):
            samples = _collected(_resampled(_limited(source, max_seconds)), max_seconds)
    except PredictorError:
        raise
    except Exception as error:  # whatever three native decoders throw at hostile bytes, it is the bytes' fault
        raise InvalidAudio(f"the {container.name} data is damaged") from error
    return Waveform(_in_range(samples), container.name)


def from_pcm(pcm: Pcm, max_seconds: float) -> Waveform:
    """Samples to a Waveform, resampled where they must be. Raises AudioTooLong or InvalidAudio."""
    if not len(pcm.samples):
        raise InvalidAudio("it holds no samples")
    if len(pcm.samples) / checked_rate(pcm.rate_hz) > max_seconds + _ROUNDING_SECONDS:
        raise AudioTooLong(max_seconds)
    offset, scale = _PCM_SCALES[pcm.samples.dtype.kind]
    samples = (pcm.samples.astype(np.float32) - np.float32(offset)) * np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        return Waveform(_in_range(np.concatenate(list(_resampled(iter([Block(samples, pcm.rate_hz)]))))))


def _limited(source: Source, max_seconds: float) -> Iterator[Block]:
    """The blocks, as long as they keep to the limits; in the end, whether the file held what it promised."""
    promised, seconds = source.promised_seconds, 0.0
    if promised is not None and promised > max_seconds + source.tolerance_seconds:
        raise AudioTooLong(max_seconds)
    for block in source.blocks:
        seconds += len(block.samples) / checked_rate(block.rate_hz)
        if seconds > max_seconds + _ROUNDING_SECONDS:
            raise AudioTooLong(max_seconds)
        yield block
    if seconds == 0:
        raise InvalidAudio("it holds no samples")
    if promised is not None and seconds < promised - source.tolerance_seconds - _ROUNDING_SECONDS:
        raise InvalidAudio(f"the header promises {promised:.2f} s but {seconds:.2f} s are there")


def _resampled(blocks: Iterator[Block]) -> Iterator[Samples]:
    """The blocks at SAMPLE_RATE_HZ: one streaming resampler for each run of blocks with the same rate."""
    for rate_hz, run in groupby(blocks, key=lambda block: block.rate_hz):
        if rate_hz == SAMPLE_RATE_HZ:
            yield from (block.samples for block in run)
            continue
        resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        for block in run:
            yield resampler.resample_chunk(block.samples)
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _collected(blocks: Iterator[Samples], max_seconds: float) -> Samples:
    """The blocks as one array, through a buffer of the limit's size, whose pages are only taken when written to.

    A list of small blocks would be as fast, but the allocator keeps what was once a hundred megabytes of them: after a
    few files at the limit, a server that had been at 60 MB stayed at twice that for every thread that decodes.
    """
    buffer = np.empty(int((max_seconds + 1) * SAMPLE_RATE_HZ), np.float32)
    end = 0
    try:
        for block in blocks:
            buffer[end : end + len(block)] = block
            end += len(block)
        return buffer[:end].copy()
    finally:
        del buffer  # the traceback of an exception would keep it until the garbage collector comes by


def _in_range(samples: Samples) -> Samples:
    """Samples [N] without the constant that a faulty microphone adds, and divided by their peak where it is above 1:
    lossy codecs overshoot, and some float files count in integers. One NaN or infinity reaches the peak, through the
    resampler too."""
    if not len(samples):
        raise InvalidAudio("it is shorter than one sample at 16 kHz")
    if not np.isfinite(_peak(samples)):
        raise InvalidAudio("it holds samples that are not numbers (NaN or infinite)")
    offset = samples.mean(dtype=np.float64)
    if abs(offset) > _MAX_OFFSET and len(samples) >= _OFFSET_SAMPLES:
        samples -= np.float32(offset)
    peak = _peak(samples)
    return samples / np.float32(peak) if peak > 1 else samples


def _peak(samples: Samples) -> float:
    return max(float(samples.max()), -float(samples.min()))
