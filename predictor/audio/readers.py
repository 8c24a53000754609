"""A container to blocks of mono samples at their own rate. The only door to soundfile and av.

libsndfile reads what is plain or lossless: it is strict and fast. FFmpeg reads the rest, and the codecs that
libsndfile lacks. It is as fast on MP3 and twice as fast on Opus, and it is silent, where libsndfile's MP3 decoder
writes to stderr about each damaged file.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_SET, BytesIO
from itertools import groupby
from typing import Any

import av
import numpy as np
import soundfile as sf
from av.audio.frame import format_dtypes
from numpy.typing import NDArray

from predictor.audio.containers import Container
from predictor.audio.integrity import checked_rate, mp3_frames
from predictor.errors import InvalidAudio, UnsupportedAudio

_BLOCK_SAMPLES = 1 << 15  # over all channels: 128 KiB of float32, which stay in the cache
_GARBAGE_PACKETS = 100  # of each, FFmpeg makes an exception: ten million of them would take a minute
_MAX_PLANES = 8  # what a frame holds itself; for more, PyAV reads beyond the end of a list
_MPEG_1_HZ = 32_000  # at and above it, an MP3 frame has 1152 samples; below, 576
_PRIMING_SECONDS = 0.2  # encoders count their warm-up into the duration: AAC 2112 samples, twice that in HE-AAC

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Mono samples float32 [n] at the file's own rate, which some formats may change on the way."""

    samples: Samples
    rate_hz: int


@dataclass(frozen=True, slots=True)
class Source:
    """An open file: its blocks in order, and the duration that it states (None: not stated, or only guessed)."""

    blocks: Iterator[Block]
    promised_seconds: float | None
    tolerance_seconds: float = 0.0


@contextmanager
def opened(container: Container, body: bytes) -> Generator[Source]:
    """The reader that fits: libsndfile where it is at home, FFmpeg for the rest and for codecs libsndfile lacks."""
    file = _sndfile(body) if container.plain else None
    if file is not None:
        with file:
            yield Source(_sndfile_blocks(file), _sndfile_seconds(file))
        return
    with av.open(BytesIO(body), mode="r", format=container.demuxer, metadata_errors="ignore") as demuxer:
        if not demuxer.streams.audio:
            raise InvalidAudio(f"the {container.name} file has no audio track")
        stream = demuxer.streams.audio[0]
        if stream.codec_context is None:
            raise UnsupportedAudio(f"an unknown codec in a {container.name} file")
        stream.codec_context.thread_type = "NONE"  # one request, one core: the server runs many requests
        promised = _mp3_seconds(body, stream) if container.demuxer == "mp3" else None
        promised = _ffmpeg_seconds(demuxer, stream) if container.tells_duration else promised
        yield Source(_ffmpeg_blocks(demuxer, stream), promised, _PRIMING_SECONDS)


class _Seekable(BytesIO):
    """Stays where it is when damaged headers send libsndfile before the start: an exception would not reach us, but
    be printed by the callback that it is raised in."""

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _sndfile(body: bytes) -> sf.SoundFile | None:
    """None for a codec that libsndfile does not know, and for MP3, which may hide in a WAV too."""
    try:
        file = sf.SoundFile(_Seekable(body))
    except sf.LibsndfileError:
        return None
    return None if file.subtype.startswith("MPEG") else file


def _sndfile_seconds(file: sf.SoundFile) -> float | None:
    """None for FLAC from a pipe, whose length is left at 0 and read as 2^63."""
    return file.frames / checked_rate(file.samplerate) if 0 < file.frames < 1 << 62 else None


def _sndfile_blocks(file: sf.SoundFile) -> Iterator[Block]:
    count = max(1, _BLOCK_SAMPLES // file.channels)
    dtype = "int16" if file.subtype == "PCM_16" else "float32"  # NumPy scales it in a fifth of libsndfile's time
    while len(frames := file.read(count, dtype=dtype, always_2d=True)):
        yield Block(_mono(frames), file.samplerate)


def _ffmpeg_seconds(demuxer: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """The track's own duration; the file's where the track is silent about it and alone (a video may go on)."""
    known = []
    if stream.duration is not None and stream.time_base is not None:
        known.append(float(stream.duration * stream.time_base))
    if demuxer.duration is not None and (known or len(demuxer.streams) == 1):
        known.append(demuxer.duration / av.time_base)
    return min(known, default=None)


def _mp3_seconds(body: bytes, stream: av.AudioStream) -> float | None:
    frames, rate_hz = mp3_frames(body), stream.codec_context.sample_rate
    if frames is None or not rate_hz:
        return None
    return frames * (1152 if rate_hz >= _MPEG_1_HZ else 576) / rate_hz


def _ffmpeg_blocks(demuxer: av.container.InputContainer, stream: av.AudioStream) -> Iterator[Block]:
    """Frames come by the 20 ms, each with its own rate and layout: joined to blocks, for the resampler's sake."""
    for rate_hz, frames in groupby(_frames(demuxer, stream), key=lambda frame: frame.sample_rate):
        joined, count = [], 0
        for frame in frames:
            array = _samples(frame)
            joined.append(_mono(array))
            count += array.size
            if count >= _BLOCK_SAMPLES:
                yield Block(np.concatenate(joined), rate_hz)
                joined, count = [], 0
        if joined:
            yield Block(np.concatenate(joined), rate_hz)


def _samples(frame: av.AudioFrame) -> NDArray[Any]:
    """A frame's samples [n, channels].

    Not by PyAV's `to_ndarray` where channels have planes of their own: of eight channels it counts nine planes (it
    looks for a null pointer behind the last, and there is none), and reading the ninth ends the process.
    """
    channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        return frame.to_ndarray().reshape(-1, channels)
    if channels > _MAX_PLANES:
        raise UnsupportedAudio(f"{channels} channels in a compressed file, where {_MAX_PLANES} can be read")
    dtype = np.dtype(format_dtypes[frame.format.name])
    planes: list[Any] = list(frame.planes[:channels])
    return np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes], axis=1)


def _frames(demuxer: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """What cannot be decoded is an error, except behind the last frame of an MP3: there it is a tag or garbage."""
    patience = _GARBAGE_PACKETS if demuxer.format.name == "mp3" else 0
    garbage = 0
    for packet in demuxer.demux(stream):
        try:
            frames = stream.decode(packet)
        except av.error.InvalidDataError:
            garbage += 1
            if garbage > patience:
                raise
            continue
        if garbage and frames:
            raise InvalidAudio("frames in its middle are damaged")
        yield from frames


def _mono(frames: NDArray[Any]) -> Samples:
    """Frames [n, channels] of any PCM type to float32 [n], full scale at 1.

    The mean, because a caller's voice may be on any channel, on one or on all: the first channel may be the
    silent one, the sum clips, and FFmpeg's own downmix weighs channels as a cinema would place them.
    """
    mono: Samples = frames[:, 0].astype(np.float32) if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
    if frames.dtype == np.uint8:
        mono -= np.float32(128)  # the one PCM type whose silence is not at 0
    if np.issubdtype(frames.dtype, np.integer):
        mono /= np.float32(1 << (8 * frames.dtype.itemsize - 1))
    return mono
