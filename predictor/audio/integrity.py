"""Whether an audio file is all there, told from its bytes before anything is decoded. Standard library only.

The decoders are lenient where a recogniser must not be: of a WAV or an Ogg that was cut in the middle they return
the first half, and a page that was damaged on the way they leave out, without a word. So the sizes that chunks
declare and the checksums of Ogg pages are compared here. FLAC, MP3, MP4 and WebM cannot be judged from outside:
what is missing there shows while they are decoded.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Literal

from predictor.audio.containers import Container
from predictor.errors import InvalidAudio

MIN_RATE_HZ = 4_000  # below it there is no speech left
MAX_RATE_HZ = 384_000  # the fastest converters made
_SLACK_BYTES = 64  # some recorders write the size of the whole file, header and all, as the size of the audio
_MAX_CHUNKS = 1000  # of 8 bytes each there could be millions
_NOT_HERE = 0xFFFFFFFF  # RF64: the size is in the ds64 chunk, which is always the first


def checked_rate(rate_hz: int) -> int:
    """The rate, if it is one that speech is recorded at, else InvalidAudio."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise InvalidAudio(f"its sample rate is {rate_hz} Hz and must be {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    return rate_hz


def whole(container: Container, body: bytes) -> bytes:
    """`body`, if it holds all the audio that it declares, else InvalidAudio; a size left at 0 is filled in."""
    if container.name == "OGG":
        _check_pages(body)
    elif (claim := _claim(body)) is not None:
        if container.name == "WAV" and claim.declared == 0:
            return _with_size(body, claim)
        present = len(body) - claim.start
        if not claim.is_open and claim.declared > present + _SLACK_BYTES:
            raise InvalidAudio(f"the header promises {claim.declared} bytes of audio but {max(0, present)} are there")
    return body


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a chunked format is written: where its first chunk is, and the widths in a chunk's header."""

    first: int
    order: Literal["little", "big"]
    id_bytes: int = 4
    size_bytes: int = 4
    size_of_header: int = 0  # W64 counts the header into the size
    alignment: int = 2


_LAYOUTS = {
    b"RIFF": _Layout(12, "little"),
    b"RF64": _Layout(12, "little"),
    b"RIFX": _Layout(12, "big"),
    b"FORM": _Layout(12, "big"),
    b"riff": _Layout(40, "little", id_bytes=16, size_bytes=8, size_of_header=24, alignment=8),
    b"caff": _Layout(8, "big", size_bytes=8, alignment=1),
}


@dataclass(frozen=True, slots=True)
class _Claim:
    """The size that the chunk of audio declares, and the offset of its first byte."""

    start: int
    declared: int

    @property
    def is_open(self) -> bool:
        """Whether the writer could not know it: ffmpeg's -1 (32, 63 and 64 bits), espeak's and SoX's 2 GiB, 0."""
        return self.declared == 0 or any(1 << bits >= self.declared >= (1 << bits) - 4096 for bits in (31, 32, 63, 64))


def _claim(body: bytes) -> _Claim | None:
    """Of the chunk that holds the audio, if there is one to be found; a WAV's format chunk is looked at on the way."""
    if body.startswith(b".snd"):
        return _Claim(int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big"))
    layout = _LAYOUTS.get(body[:4])
    if layout is None:
        return None
    at = layout.first
    for _ in range(_MAX_CHUNKS):
        name, start = body[at : at + 4], at + layout.id_bytes + layout.size_bytes
        if start > len(body):
            return None
        size = int.from_bytes(body[at + layout.id_bytes : start], layout.order) - layout.size_of_header
        if name in (b"data", b"SSND"):
            is_64_bit = body[:4] == b"RF64" and size == _NOT_HERE
            return _Claim(start, int.from_bytes(body[28:36], "little") if is_64_bit else size)
        if name == b"fmt ":
            checked_rate(int.from_bytes(body[start + 4 : start + 8], layout.order))  # libsndfile will not say which
        at = start + -(-max(0, size) // layout.alignment) * layout.alignment
    raise InvalidAudio(f"it has more than {_MAX_CHUNKS} chunks before its audio")


def _with_size(body: bytes, claim: _Claim) -> bytes:
    """A WAV whose data chunk declares 0 bytes, as some recorders leave it, declares what there is."""
    order = _LAYOUTS[body[:4]].order
    size = min(len(body) - claim.start, _NOT_HERE)
    return body[: claim.start - 4] + size.to_bytes(4, order) + body[claim.start :]


def mp3_frames(body: bytes) -> int | None:
    """How many frames an MP3 says that it has, in its Xing or Info tag; each has 1152 samples, or 576 below 32 kHz.

    FFmpeg knows the tag too, but falls back to a guess where something else follows the last frame.
    """
    tag = re.match(rb"\xff[\xe2-\xff].{8,40}?(?:Xing|Info)(....)(....)", body[:64], re.DOTALL)
    return int.from_bytes(tag[2], "big") if tag and int.from_bytes(tag[1], "big") & 1 else None


def _check_pages(body: bytes) -> None:
    """Every Ogg page is there to its end, with the checksum it should have; what follows the last is let be."""
    at = 0
    while body.startswith(b"OggS", at):
        table = at + 27  # of the segments' sizes; how many there are is the byte before it
        payload = table + (body[table - 1] if table <= len(body) else 0)
        end = payload + sum(body[table:payload])
        if end > len(body):
            raise InvalidAudio("it is cut in the middle of its last page")
        if _page_checksum(body[at:end]) != int.from_bytes(body[at + 22 : at + 26], "little"):
            raise InvalidAudio(f"the page at byte {at} is damaged")
        at = end
    if body.find(b"OggS", at) >= 0:
        raise InvalidAudio(f"there is something between its pages at byte {at}")


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _page_checksum(page: bytes) -> int:
    """CRC-32 as Ogg counts it (RFC 3533): zlib's, but with the bits in the other order, and no inversions."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    crc = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
