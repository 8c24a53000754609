"""What a file is, told from its first bytes and never from its name. Standard library only.

The table is the list of all that reaches a decoder. FFmpeg is always told the container and never asked to guess,
because some of the formats it would guess are playlists that name other files and addresses.
"""

import codecs
import re
from dataclasses import dataclass

from predictor.errors import InvalidAudio, UnsupportedAudio


@dataclass(frozen=True, slots=True)
class Container:
    """A file format: its `name` for people, FFmpeg's name for its `demuxer`, and how far it can be relied on."""

    name: str
    demuxer: str
    plain: bool = False  # libsndfile reads it
    tells_duration: bool = False  # FFmpeg's duration is stated in the file, and not estimated from a bit rate


_MAX_TAGS = 4  # two have been seen; of 10 bytes each there could be millions

_MP3 = Container("MP3", "mp3")
_MPEG_SYNC = rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]"  # layers II and III, a bit rate; no UTF-16 mark
_CONTAINERS = (
    (rb"(RIFF|RIFX|RF64)(....WAVE|.{0,7}\Z)", Container("WAV", "wav", plain=True)),
    (rb"riff\x2e\x91\xcf\x11", Container("W64", "w64", plain=True)),
    (rb"FORM(....AIF[FC]|.{0,7}\Z)", Container("AIFF", "aiff", plain=True)),
    (rb"\.snd(\0|\Z)", Container("AU", "au", plain=True)),
    (rb"caff(\0|\Z)", Container("CAF", "caf", plain=True)),
    (rb"NIST_1A", Container("NIST", "nistsphere", plain=True)),
    (rb"fLaC", Container("FLAC", "flac", plain=True)),
    (rb"OggS", Container("OGG", "ogg", tells_duration=True)),
    (rb"\x1a\x45\xdf\xa3", Container("WebM", "matroska", tells_duration=True)),
    (rb"\0...(ftyp|moov|mdat|wide|free|skip)", Container("MP4", "mov", tells_duration=True)),
    (rb"#!AMR", Container("AMR", "amr")),
    (rb"\xff[\xf0\xf1\xf8\xf9]", Container("AAC", "aac")),
    (_MPEG_SYNC, _MP3),
)
_STRANGERS = (
    (rb"\x89PNG", "an image (PNG)"),
    (rb"\xff\xd8\xff", "an image (JPEG)"),
    (rb"GIF8", "an image (GIF)"),
    (rb"RIFF....WEBP", "an image (WebP)"),
    (rb"RIFF....AVI ", "a video (AVI)"),
    (rb"FLV", "a video (FLV)"),
    (rb"\x30\x26\xb2\x75", "a Windows Media file"),
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"\xff\xfe|\xfe\xff|\xef\xbb\xbf", "text"),
)


def sniff(data: bytes) -> tuple[Container, bytes]:
    """The container of non-empty `data`, and `data` without any ID3 tags before it; or UnsupportedAudio.

    Such tags stand before MP3, and now and then before FLAC and AAC; one may hold a picture.
    """
    at = 0
    for _ in range(_MAX_TAGS):
        if not re.match(rb"ID3([\2-\4]|\Z)", data[at : at + 4]):
            break
        sizes = zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=False)
        at += 10 + sum((byte & 0x7F) << shift for byte, shift in sizes)
    if at == 0:
        return _container(data), data
    if at >= len(data):
        raise InvalidAudio("it ends within its ID3 tag")
    body = data[at:].lstrip(b"\0")
    try:
        return _container(body), body
    except UnsupportedAudio:
        return _MP3, body  # its reader looks further for a first frame


def _container(data: bytes) -> Container:
    for magic, container in _CONTAINERS:
        if re.match(magic, data, re.DOTALL):
            return container
    raise UnsupportedAudio(_description(data[:256]))


def _description(head: bytes) -> str:
    for magic, words in _STRANGERS:
        if re.match(magic, head, re.DOTALL):
            return words
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut at the end
    except UnicodeDecodeError:
        return "unknown bytes"
    return "text" if text and all(char.isprintable() or char.isspace() for char in text) else "unknown bytes"
