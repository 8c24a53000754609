"""Every way that we know to write down one clip, and every way to write something that is no audio.

`odd` is what clients really send and must be understood; `hostile` is what must be refused, and how. Both are built
from a plain clip (float32 [N], mono, 16 kHz), without a network, and the same in every run.
"""

import base64
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from functools import cache

import av
import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from predictor.errors import AudioTooLong, InvalidAudio, PredictorError, UnsupportedAudio

RATE_HZ = 16_000
TEN_HOURS_SECONDS = 36_000

Samples = NDArray[np.float32]
Refused = tuple[bytes, type[PredictorError]]


def odd(samples: Samples) -> dict[str, bytes]:
    """The clip, by a phrase that says how it is written; a phrase is absent where this machine cannot write it."""
    return {
        **dict(_sample_types(samples)),
        **dict(_rates_and_channels(samples)),
        **dict(_headers(samples)),
        **dict(_containers(samples)),
        **dict(_compressed(samples)),
        **dict(_levels(samples)),
    }


def hostile(samples: Samples) -> dict[str, Refused]:
    """Bytes and the error that they must raise, under any limit between the clip's length and ten hours."""
    invalid = {
        "nothing": b"",
        **dict(_only_magic()),
        **dict(_cut(samples)),
        **dict(_bad_headers(samples)),
        **dict(_bad_samples()),
        **dict(_damaged(samples)),
        **dict(_no_audio()),
    }
    return {
        **{name: (data, InvalidAudio) for name, data in invalid.items()},
        **{name: (data, UnsupportedAudio) for name, data in _strangers(samples)},
        **{name: (data, AudioTooLong) for name, data in bombs().items()},
    }


def plain(
    samples: Samples, rate_hz: int = RATE_HZ, container: str = "WAV", codec: str = "PCM_16", **kwargs: str
) -> bytes:
    """Samples [N] or [N, channels], as libsndfile writes them."""
    out = io.BytesIO()
    sf.write(out, samples, rate_hz, format=container, subtype=codec, **kwargs)
    data = out.getvalue()
    peak = data.find(b"PEAK", 0, 200)  # a chunk of float files, with the time of writing in it
    return data if peak < 0 else _patched(data, peak + 12, "<I", 0)


def _wav(samples: Samples) -> bytes:
    """The 44 bytes of header that everyone knows, and PCM16."""
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    head = struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + len(pcm), b"WAVEfmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return head + struct.pack("<4sI", b"data", len(pcm)) + pcm


def _patched(data: bytes, offset: int, layout: str, *values: float) -> bytes:
    packed = struct.pack(layout, *values)
    return data[:offset] + packed + data[offset + len(packed) :]


def _at(samples: Samples, rate_hz: int) -> Samples:
    return np.clip(soxr.resample(samples, RATE_HZ, rate_hz), -1, 1)


class _Pipe(io.RawIOBase):
    """A file that cannot go back to fill in its header."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.written += bytes(data)
        return len(data)


def _ffmpeg(  # noqa: PLR0917
    samples: Samples, container: str, codec: str, rate_hz: int = RATE_HZ, layout: str = "mono", pipe: bool = False,
    video: bool = False, **options: str,
) -> bytes:  # fmt: skip
    """Samples [N] as FFmpeg writes them; `samples` of length 0 leave the audio track out."""
    out = _Pipe() if pipe else io.BytesIO()
    with av.open(out, "w", format=container, options={"fflags": "+bitexact", **options}) as muxer:
        film = muxer.add_stream("mpeg4" if container == "mp4" else "libvpx", rate=5) if video else None
        if film is not None:
            film.width, film.height, film.pix_fmt, film.thread_count = 64, 64, "yuv420p", 1
        if len(samples):
            sound = muxer.add_stream(codec, rate=rate_hz, layout=layout, options={"flags": "+bitexact"})
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, 0
            muxer.mux([*sound.encode(frame), *sound.encode(None)])
        if film is not None:
            grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            muxer.mux([*film.encode(grey), *film.encode(None)])
    return bytes(out.written) if isinstance(out, _Pipe) else out.getvalue()


def _sample_types(samples: Samples) -> Iterator[tuple[str, bytes]]:
    yield "16-bit WAV", _wav(samples)
    yield "8-bit WAV", plain(samples, codec="PCM_U8")
    yield "24-bit WAV", plain(samples, codec="PCM_24")
    yield "32-bit integer WAV", plain(samples, codec="PCM_32")
    yield "float32 WAV", plain(samples, codec="FLOAT")
    yield "float64 WAV", plain(samples, codec="DOUBLE")
    yield "A-law WAV", plain(samples, codec="ALAW")
    yield "mu-law WAV", plain(samples, codec="ULAW")
    yield "A-law WAV of a telephone", plain(_at(samples, 8_000), 8_000, codec="ALAW")
    yield "IMA ADPCM WAV", plain(samples, codec="IMA_ADPCM")
    yield "Microsoft ADPCM WAV", plain(samples, codec="MS_ADPCM")
    yield "GSM 6.10 WAV", plain(_at(samples, 8_000), 8_000, codec="GSM610")
    yield "big-endian WAV", plain(samples, endian="BIG")
    yield "WAV with MP3 inside", _ffmpeg(samples, "wav", "libmp3lame")


def _rates_and_channels(samples: Samples) -> Iterator[tuple[str, bytes]]:
    for rate_hz in (8_000, 11_025, 22_050, 44_100, 96_000, 384_000):
        yield f"{rate_hz / 1000:g} kHz WAV", plain(_at(samples, rate_hz), rate_hz)
    stereo = np.stack([_at(samples, 48_000)] * 2, axis=1)
    yield "48 kHz stereo WAV", plain(stereo, 48_000)
    yield "stereo WAV with silence on the left", plain(np.stack([np.zeros_like(samples), samples], axis=1))
    yield "8-channel WAV with one voice", plain(np.eye(8, dtype=np.float32)[5] * samples[:, None], container="WAVEX")
    yield "8-channel float64 WAV", plain(np.stack([samples] * 8, axis=1), codec="DOUBLE")
    yield "48 kHz stereo FLAC", plain(stereo, 48_000, "FLAC", "PCM_16")
    yield "5.1 AAC in MP4", _ffmpeg(samples, "mp4", "aac", 48_000, "5.1")


def _headers(samples: Samples) -> Iterator[tuple[str, bytes]]:
    wav = _wav(samples)
    notes = b"LIST" + struct.pack("<I", 16) + b"INFOICMT" + struct.pack("<I", 4) + b"hey\0"
    yield "WAV with a LIST chunk before its data", wav[:36] + notes + wav[36:]
    yield "WAV with a LIST chunk after its data", wav + notes
    yield "WAV with JUNK before its format", wav[:12] + b"JUNK" + struct.pack("<I", 27) + bytes(28) + wav[12:]
    yield "WAV with an ID3 tag after its data", wav + b"id3 " + struct.pack("<I", 10) + b"ID3\3\0\0\0\0\0\0"
    yield "WAV with garbage at its end", wav + np.random.default_rng(1).bytes(999)
    yield "WAV with an extensible header", plain(samples, container="WAVEX")
    yield "WAV with its size left at -1", _patched(_patched(wav, 4, "<I", 0xFFFFFFFF), 40, "<I", 0xFFFFFFFF)
    yield "WAV with its size left at 0", _patched(_patched(wav, 4, "<I", 0), 40, "<I", 0)
    yield "WAV with only its data size left at 0", _patched(wav, 40, "<I", 0)
    yield "WAV from a pipe, as espeak writes it", _patched(_patched(wav, 4, "<I", 0x7FFFF024), 40, "<I", 0x7FFFF000)
    yield "WAV from a pipe, as ffmpeg writes it", _ffmpeg(samples, "wav", "pcm_s16le", pipe=True)
    yield "WAV with the size of the file for its data", _patched(wav, 40, "<I", len(wav))
    yield "WAV with a block size of 0", _patched(wav, 32, "<H", 0)
    yield "WAV with a negative block size", _patched(wav, 32, "<h", -1)
    yield "WAV with a wrong byte rate", _patched(wav, 28, "<I", 1)
    yield "AIFF from a pipe", _ffmpeg(samples, "aiff", "pcm_s16be", pipe=True)
    yield "AU from a pipe", _ffmpeg(samples, "au", "pcm_s16be", pipe=True)
    yield "CAF from a pipe", _ffmpeg(samples, "caf", "pcm_s16be", pipe=True)
    yield "FLAC from a pipe", _ffmpeg(samples, "flac", "flac", pipe=True)
    yield "MP3 from a pipe", _ffmpeg(samples, "mp3", "libmp3lame", pipe=True)
    yield "WebM from a browser's recorder", _ffmpeg(samples, "webm", "libopus", 48_000, pipe=True, live="1")


def _containers(samples: Samples) -> Iterator[tuple[str, bytes]]:
    for container in ("AIFF", "AU", "CAF", "W64", "RF64", "NIST"):
        yield container, plain(samples, container=container)
    yield "little-endian AIFF", plain(samples, container="AIFF", endian="LITTLE")
    yield "float AU", plain(samples, container="AU", codec="FLOAT")
    yield "Apple Lossless in CAF", plain(samples, container="CAF", codec="ALAC_16")
    yield "16-bit FLAC", plain(samples, container="FLAC")
    yield "24-bit FLAC", plain(samples, container="FLAC", codec="PCM_24")
    yield "FLAC behind an ID3 tag", _id3(b"") + plain(samples, container="FLAC")
    yield "FLAC in Ogg", _ffmpeg(samples, "ogg", "flac")
    yield "Apple Lossless in M4A", _ffmpeg(samples, "ipod", "alac")
    yield "PCM in Matroska", _ffmpeg(samples, "matroska", "pcm_s16le")


def _compressed(samples: Samples) -> Iterator[tuple[str, bytes]]:
    mp3 = plain(samples, container="MP3", codec="MPEG_LAYER_III")
    yield "MP3", mp3
    yield "MP3 behind a picture of 100 kB", _id3(np.random.default_rng(2).bytes(100_000)) + mp3
    yield "MP3 with a tag at its end", mp3 + b"TAG" + bytes(125)
    yield "MP3 with garbage at its end", mp3 + b"no frame of any kind. " * 40
    yield "48 kHz stereo MP3", _ffmpeg(samples, "mp3", "libmp3lame", 48_000, "stereo")
    yield "Ogg Vorbis", _restamped(plain(samples, container="OGG", codec="VORBIS"))
    yield "Ogg Opus", _restamped(plain(samples, container="OGG", codec="OPUS"))
    yield "48 kHz stereo Ogg Opus", _ffmpeg(samples, "ogg", "libopus", 48_000, "stereo")
    yield "Ogg Opus with garbage at its end", _ffmpeg(samples, "ogg", "libopus", 48_000) + b"garbage" * 99
    yield "AAC in M4A", _ffmpeg(samples, "ipod", "aac")
    yield "44.1 kHz stereo AAC in M4A", _ffmpeg(samples, "ipod", "aac", 44_100, "stereo")
    yield "AAC in MP4 fragments", _ffmpeg(samples, "mp4", "aac", pipe=True, movflags="frag_keyframe+empty_moov")
    yield "AAC in MP4 with a film", _ffmpeg(samples, "mp4", "aac", video=True)
    yield "AAC as ADTS", _ffmpeg(samples, "adts", "aac")
    yield "AAC behind an ID3 tag", _id3(b"") + _ffmpeg(samples, "adts", "aac")
    yield "AAC in Matroska", _ffmpeg(samples, "matroska", "aac")
    yield "Opus in WebM", _ffmpeg(samples, "webm", "libopus", 48_000)
    if "libopencore_amrnb" in av.codecs_available:
        yield "AMR", _ffmpeg(samples, "amr", "libopencore_amrnb", 8_000)
        yield "AMR in 3GP", _ffmpeg(samples, "3gp", "libopencore_amrnb", 8_000)


def _levels(samples: Samples) -> Iterator[tuple[str, bytes]]:
    yield "float WAV at the scale of 16-bit integers", plain(samples * 32768, codec="FLOAT")
    yield "float WAV that is a little too loud", plain(samples * np.float32(1.2 / np.abs(samples).max()), codec="FLOAT")
    yield "WAV at -40 dB", plain(samples * np.float32(0.01))
    yield "WAV with a DC offset", plain(samples * np.float32(0.5) + np.float32(0.2))


def _id3(picture: bytes) -> bytes:
    """An ID3v2.3 tag with one picture; its size is written in 7 bits a byte."""
    body = b"APIC" + struct.pack(">IH", len(picture) + 14, 0) + b"\0image/png\0\3\0\0" + picture
    return b"ID3\3\0\0" + bytes((len(body) >> shift) & 0x7F for shift in (21, 14, 7, 0)) + body


def _only_magic() -> Iterator[tuple[str, bytes]]:
    magics = {
        "WAV": b"RIFF", "WAVE": b"RIFF\0\0\0\0WAVE", "AIFF": b"FORM", "AU": b".snd", "CAF": b"caff", "FLAC": b"fLaC",
        "OGG": b"OggS", "WebM": b"\x1a\x45\xdf\xa3", "MP4": b"\0\0\0\x18ftyp", "AMR": b"#!AMR\n", "NIST": b"NIST_1A",
        "ID3": b"ID3", "MP3": b"\xff\xfb\x90\x00", "AAC": b"\xff\xf1\x50\x80", "W64": b"riff\x2e\x91\xcf\x11",
    }  # fmt: skip
    for name, magic in magics.items():
        yield f"nothing but the magic of {name}", magic


def _cut(samples: Samples) -> Iterator[tuple[str, bytes]]:
    whole = {
        "WAV": _wav(samples),
        **{name: plain(samples, container=name) for name in ("AIFF", "AU", "CAF", "W64", "RF64", "FLAC")},
        "Vorbis": _restamped(plain(samples, container="OGG", codec="VORBIS")),
        "Opus": _ffmpeg(samples, "ogg", "libopus", 48_000),
        "MP3": plain(samples, container="MP3", codec="MPEG_LAYER_III"),
        "M4A": _ffmpeg(samples, "ipod", "aac"),
        "fragmented MP4": _ffmpeg(samples, "mp4", "aac", pipe=True, movflags="frag_keyframe+empty_moov"),
        "WebM": _ffmpeg(samples, "webm", "libopus", 48_000),
        "ADTS": _ffmpeg(samples, "adts", "aac"),
    }
    for name, data in whole.items():
        yield f"{name} cut at 60 %", data[: len(data) * 6 // 10]
    yield "WAV with a header and no data", whole["WAV"][:44]
    yield "FLAC with a header and no data", whole["FLAC"][:42]
    yield "Opus with headers and no data", b"".join(_pages(whole["Opus"])[:2])


def _bad_headers(samples: Samples) -> Iterator[tuple[str, bytes]]:
    wav = _wav(samples)
    for rate_hz in (0, 1, 3_999, 384_001, 0xFFFFFFFF):
        yield f"WAV of {rate_hz} Hz", _patched(wav, 24, "<I", rate_hz)
    yield "FLAC of 0 Hz", _flac(0, b"", 0)
    yield "WAV of 0 channels", _patched(wav, 22, "<H", 0)
    yield "WAV that claims 4 GB", _patched(wav, 40, "<I", 0xF0000000)
    yield "WAV that claims 3 GB", _patched(wav, 40, "<I", 3_000_000_000)
    yield "WAV with no format", wav[:12] + wav[36:]
    yield "WAV with no data chunk", wav[:36]
    yield "WAV of two thousand empty chunks", wav[:12] + (b"JUNK" + bytes(4)) * 2000 + wav[12:]
    yield "AIFF with no sound chunk", plain(samples, container="AIFF").replace(b"SSND", b"SSNE", 1)
    yield "AU that starts behind its end", _patched(plain(samples, container="AU"), 4, ">I", 0x00FFFFFF)
    yield "ID3 tag with nothing behind it", _id3(bytes(1000))
    yield "ID3 tag longer than the file", b"ID3\3\0\0\x7f\x7f\x7f\x7f" + wav


def _bad_samples() -> Iterator[tuple[str, bytes]]:
    quiet = np.zeros(RATE_HZ, np.float64)
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("1e300", 1e300)):
        poisoned = quiet.copy()
        poisoned[777] = value
        yield f"WAV with one sample of {name}", plain(poisoned, codec="DOUBLE")
        yield f"44.1 kHz WAV with one sample of {name}", plain(poisoned, 44_100, codec="DOUBLE")
    yield "WAV of no samples", plain(np.zeros(0, np.float32))
    yield "96 kHz WAV too short for a sample at 16 kHz", plain(np.zeros(1, np.float32), 96_000)


def _damaged(samples: Samples) -> Iterator[tuple[str, bytes]]:
    noise = np.random.default_rng(3).bytes
    flac, opus = plain(samples, container="FLAC"), _ffmpeg(samples, "ogg", "libopus", 48_000)
    vorbis = _restamped(plain(samples, container="OGG", codec="VORBIS"))
    half, pages = len(flac) // 2, _pages(opus)
    yield "FLAC with noise in its middle", flac[:half] + noise(500) + flac[half + 500 :]
    yield "FLAC with one byte changed", _patched(flac, half, "B", flac[half] ^ 0xFF)
    yield "Opus with one byte changed", _patched(opus, len(opus) // 2, "B", opus[len(opus) // 2] ^ 1)
    yield "Vorbis with one byte changed", _patched(vorbis, len(vorbis) // 2, "B", vorbis[len(vorbis) // 2] ^ 1)
    yield "Opus with noise between its pages", pages[0] + pages[1] + noise(100) + b"".join(pages[2:])
    yield "noise behind the magic of Ogg", b"OggS" + noise(5000)
    yield "noise behind the magic of FLAC", b"fLaC" + noise(5000)
    yield "noise behind the magic of WAV", b"RIFF" + noise(4) + b"WAVE" + noise(5000)
    yield "noise behind the magic of WebM", b"\x1a\x45\xdf\xa3" + noise(5000)
    yield "noise behind the magic of MP4", b"\0\0\0\x18ftypM4A " + noise(5000)
    yield "noise behind the sync of MP3", b"\xff\xfb\x90\x64" + noise(5000)
    yield "noise behind the sync of AAC", b"\xff\xf1\x50\x80" + noise(5000)


def _no_audio() -> Iterator[tuple[str, bytes]]:
    silent = np.zeros(0, np.float32)
    yield "MP4 with nothing but a film", _ffmpeg(silent, "mp4", "", video=True)
    if "libvpx" in av.codecs_available:
        yield "WebM with nothing but a film", _ffmpeg(silent, "webm", "", video=True)
    kind = struct.pack(">I4s4sI", 16, b"ftyp", b"M4A ", 0)
    yield "MP4 with no track", kind + struct.pack(">I4s", 8, b"moov")
    boxes = b"".join(struct.pack(">I4s", 8 * count, b"moov") for count in range(5000, 0, -1))
    yield "MP4 of boxes within boxes", kind + boxes


def _strangers(samples: Samples) -> Iterator[tuple[str, bytes]]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("clip.wav"), _wav(samples[:100]))
    yield "one byte", b"\0"
    yield "one letter", b"R"
    yield "text", "xin chào, नमस्ते, this is no recording\n".encode()
    yield "UTF-16 text", "xin chào, नमस्ते".encode("utf-16")
    yield "JSON", json.dumps({"audio": [0.0, 0.1]}).encode()
    yield "HTML", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "XML", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
    yield "text that begins as a file might", b"The free lunch of the skip mdat was caff and .snd"
    yield "text about caffeine", b"caffeine"
    yield "a WAV in base64", base64.b64encode(_wav(samples))
    yield (
        "a playlist",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://169.254.169.254/latest\n#EXT-X-ENDLIST\n",
    )
    yield "a list of files to join", b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    yield "PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100)
    yield "JPEG", b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(100)
    yield "WebP", b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60)
    yield "ZIP", archive.getvalue()
    yield "gzip", gzip.compress(_wav(samples), mtime=0)
    yield "PDF", b"%PDF-1.7\n1 0 obj << >> endobj\n"
    yield "a program", b"\x7fELF\2\1\1" + bytes(100)
    for seed in (4, 5, 6):
        yield f"noise number {seed}", np.random.default_rng(seed).bytes(20_000)
    yield "zeros", bytes(10_000)
    yield "WAV of 0 bits", _patched(_wav(samples), 34, "<H", 0)
    yield "WAV with an unknown codec", _patched(_wav(samples), 20, "<H", 0x1234)


@cache
def bombs() -> dict[str, bytes]:
    """Ten hours of silence in a few kilobytes: told by the header, not told, or denied by it."""
    frames, total = _flac_silence(TEN_HOURS_SECONDS * RATE_HZ), TEN_HOURS_SECONDS * RATE_HZ
    return {
        "ten hours of FLAC": _flac(RATE_HZ, frames, total),
        "ten hours of FLAC that says nothing": _flac(RATE_HZ, frames, 0),
        "ten hours of Opus": _opus_silence(first_granule=0),
        "ten hours of Opus that says one second": _opus_silence(first_granule=48_000 - 48_000 * TEN_HOURS_SECONDS),
    }


def _flac(rate_hz: int, frames: bytes, total: int) -> bytes:
    """A FLAC stream (RFC 9639): mono, 16 bits, blocks of 65535 samples; a `total` of 0 means that it is not known."""
    packed = (rate_hz << 44) | (15 << 36) | total
    return b"fLaC\x80\0\0\x22" + b"\xff\xff\xff\xff" + bytes(6) + packed.to_bytes(8, "big") + bytes(16) + frames


def _flac_silence(total: int) -> bytes:
    """Frames that hold one constant each: 14 bytes for 4 s."""
    frames = bytearray()
    for number, start in enumerate(range(0, total, 65_535)):
        size = min(65_535, total - start)
        header = b"\xff\xf8\x70\x08" + chr(number).encode() + (size - 1).to_bytes(2, "big")
        frame = header + bytes([_crc(header, 8, 0x07)]) + b"\0\0\0"
        frames += frame + _crc(frame, 16, 0x8005).to_bytes(2, "big")
    return bytes(frames)


def _opus_silence(first_granule: int) -> bytes:
    """Ogg Opus (RFC 7845) of nothing but DTX: packets of one byte, each two frames of 60 ms that were not sent."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<II", 0, 0)
    pages, packets, number = [_page(2, 0, 0, [head]), _page(0, 0, 1, [tags])], TEN_HOURS_SECONDS * 100 // 12, 2
    for done in range(0, packets, 255):
        count = min(255, packets - done)
        granule = max(0, first_granule + (done + count) * 5760)
        pages.append(_page(4 if done + count == packets else 0, granule, number, [b"\x59"] * count))
        number += 1
    return b"".join(pages)


def _page(flags: int, granule: int, number: int, packets: list[bytes], serial: int = 1) -> bytes:
    """One Ogg page (RFC 3533) of whole packets of less than 255 bytes."""
    head = struct.pack("<4sBBqII", b"OggS", 0, flags, granule, serial, number)
    body = bytes([len(packets), *map(len, packets)]) + b"".join(packets)
    return head + struct.pack("<I", _crc(head + bytes(4) + body, 32, 0x04C11DB7)) + body


def _pages(ogg: bytes) -> list[bytes]:
    starts = [at for at in range(len(ogg)) if ogg.startswith(b"OggS\0", at)]
    return [ogg[start:end] for start, end in zip(starts, [*starts[1:], len(ogg)], strict=True)]


def _restamped(ogg: bytes) -> bytes:
    """With the serial number 1, where libsndfile takes a random one."""
    pages = [page[:14] + struct.pack("<I", 1) + page[18:22] + bytes(4) + page[26:] for page in _pages(ogg)]
    return b"".join(_patched(page, 22, "<I", _crc(page, 32, 0x04C11DB7)) for page in pages)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
    for byte in data:
        value = ((value << 8) & mask) ^ table[(value >> (bits - 8)) ^ byte]
    return value


@cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return table
