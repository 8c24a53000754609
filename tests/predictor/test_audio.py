"""Every odd file becomes the clip it was made from, every hostile one its error, and nothing else ever happens."""

import io
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import av
import numpy as np
import odd_audio
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.audio import Waveform, decode
from predictor.errors import AudioTooLong, InvalidAudio, PredictorError, UnsupportedAudio
from predictor.features import SAMPLE_RATE_HZ

TESTSET = Path(__file__).parents[2] / "demo" / "testset"
LIMIT_SECONDS = 60.0

# What a way of writing costs: the least correlation, the most samples of shift. The longest key that fits counts.
COSTS = {
    "": (0.9995, 0),
    "AMR": (0.75, 100),  # 4.75 kbit/s, and a codec that keeps spectra and not waveforms
    "GSM": (0.95, 0),
    "telephone": (0.98, 0),
    "8 kHz WAV": (0.98, 0),
    "11.025": (0.99, 0),
    "Opus": (0.99, 0),
    "Vorbis": (0.99, 0),
    "WebM": (0.99, 0),
    "ADPCM": (0.99, 0),
    "-40 dB": (0.999, 0),  # seven bits of sixteen are left
    "8-bit": (0.995, 0),
    "MP3": (0.99, 0),
    "MP3 from a pipe": (0.98, 1105),  # no header that tells the encoder's delay: LAME's 576 + 529
    "MP3 inside": (0.98, 1105),
    "AAC": (0.99, 0),
    "AAC in MP4 fragments": (0.99, 1024),  # one frame of delay, and no edit list to tell it
    "AAC as ADTS": (0.99, 1024),
    "AAC behind an ID3 tag": (0.99, 1024),
}


@cache
def clip() -> np.ndarray:
    """The first recording of the demo's test set: three seconds of speech, float32 [N], 16 kHz."""
    with (TESTSET / "manifest.jsonl").open(encoding="utf-8") as manifest:
        samples, rate_hz = sf.read(TESTSET / json.loads(manifest.readline())["audio"], dtype="float32")
    assert (rate_hz, samples.ndim) == (SAMPLE_RATE_HZ, 1)
    return samples


@cache
def odd() -> dict[str, bytes]:
    return odd_audio.odd(clip())


@cache
def hostile() -> dict[str, odd_audio.Refused]:
    return odd_audio.hostile(clip())


@cache
def short_files() -> list[bytes]:
    """A quarter of a second in each of the formats that differ most, to be mutilated by the hundred."""
    files = odd_audio.odd(clip()[8000:12000])
    names = ("16-bit WAV", "float32 WAV", "RF64", "AIFF", "AU", "CAF", "16-bit FLAC", "Ogg Vorbis", "Ogg Opus", "MP3")
    names += ("AAC in M4A", "AAC as ADTS", "Opus in WebM", "AAC in MP4 fragments", "A-law WAV", "IMA ADPCM WAV")
    return [files[name] for name in names]


def likeness(samples: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """The largest normalised cross-correlation, at any shift, and the shift."""
    size = 1 << (len(samples) + len(reference)).bit_length()
    left, right = samples - samples.mean(), reference - reference.mean()
    product = np.fft.irfft(np.fft.rfft(left, size) * np.conj(np.fft.rfft(right, size)), size)
    shift = int(product.argmax())
    return product[shift] / np.sqrt((left @ left) * (right @ right)), (shift + size // 2) % size - size // 2


def is_sound(waveform: Waveform) -> bool:
    """Whether a waveform is what its docstring says."""
    samples = waveform.samples
    return samples.dtype == np.float32 and samples.ndim == 1 and len(samples) > 0 and bool((np.abs(samples) <= 1).all())


def refusal(data: bytes, limit_seconds: float = LIMIT_SECONDS) -> PredictorError:
    with pytest.raises(PredictorError) as caught:
        decode(data, limit_seconds)
    return caught.value


@pytest.mark.parametrize("name", odd())
def test_an_odd_file_is_the_clip_that_it_was_made_from(name):
    waveform = decode(odd()[name], LIMIT_SECONDS)
    least, most_shift = COSTS[max((key for key in COSTS if key in name), key=len)]
    correlation, shift = likeness(waveform.samples, clip())
    assert is_sound(waveform)
    assert correlation > least
    assert abs(shift) <= most_shift
    assert waveform.duration_seconds == pytest.approx(
        len(clip()) / SAMPLE_RATE_HZ, abs=0.12 if least < 0.9995 else 0.05
    )


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_file_raises_its_error_and_the_message_tells_no_secrets(name):
    data, expected = hostile()[name]
    started = time.perf_counter()
    error = refusal(data)
    assert type(error) is expected
    assert time.perf_counter() - started < 5
    assert not re.search(
        r"sndfile|soundfile|ffmpeg|libav|pyav|soxr|numpy|mpg123|errno|BytesIO|0x\w|[/\\]", str(error), re.IGNORECASE
    )


def test_the_cases_are_many_small_and_the_same_in_every_run():
    assert len(odd()) >= 32
    assert len(hostile()) >= 34
    assert sum(map(len, odd().values())) + sum(len(data) for data, _ in hostile().values()) < 30_000_000
    assert odd_audio.odd(clip()) == odd()
    assert odd_audio.hostile(clip()) == hostile()


def test_nothing_is_written_to_the_terminal(capfd):
    for data in [*odd().values(), *(data for data, _ in hostile().values())]:
        try:
            decode(data, LIMIT_SECONDS)
        except PredictorError:
            continue
    assert capfd.readouterr() == ("", "")


def test_16_bit_samples_come_out_exactly():
    pcm = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    assert decode(odd_audio.plain(pcm), 1).samples.tolist() == (pcm / 32768).tolist()


@pytest.mark.parametrize(("count", "rate_hz"), [(1, 8_000), (1, 16_000), (10, 16_000), (10, 44_100), (160, 384_000)])
def test_very_short_audio_is_valid(count, rate_hz):
    waveform = decode(odd_audio.plain(np.full(count, 0.5, np.float32), rate_hz), 1)
    assert len(waveform.samples) == pytest.approx(count * SAMPLE_RATE_HZ / rate_hz, abs=1)


def test_channels_are_mixed_by_their_mean():
    left, right = np.full(100, 0.75, np.float32), np.full(100, -0.25, np.float32)
    waveform = decode(odd_audio.plain(np.stack([left, right], axis=1), codec="FLOAT"), 1)
    assert waveform.samples == pytest.approx(0.25)


def test_a_constant_that_a_microphone_adds_is_removed():
    shifted = decode(odd_audio.plain(clip() / 2 + np.float32(0.2), codec="FLOAT"), LIMIT_SECONDS).samples
    assert abs(float(shifted.mean())) < 1e-4
    assert np.abs(shifted - (clip() / 2 - clip().mean() / 2)).max() < 1e-4


def test_only_what_is_too_loud_is_scaled():
    loud = np.array([0.5, -4.0, 2.0], np.float32)
    assert decode(odd_audio.plain(loud, codec="FLOAT"), 1).samples.tolist() == [0.125, -1.0, 0.5]
    quiet = np.array([0.125, -1.0, 0.5], np.float32)
    assert decode(odd_audio.plain(quiet, codec="FLOAT"), 1).samples.tolist() == quiet.tolist()


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_the_limit_is_inclusive_and_exact(container, rate_hz):
    exact = np.zeros(7 * rate_hz, np.float32)
    assert decode(odd_audio.plain(exact, rate_hz, container), 7).duration_seconds == pytest.approx(7, abs=1e-4)
    error = refusal(odd_audio.plain(np.append(exact, np.float32(0)), rate_hz, container), 7)
    assert isinstance(error, AudioTooLong)
    assert error.limit_seconds == 7


def test_a_sample_rate_outside_the_limits_is_named_with_the_limits():
    assert "3999 Hz and must be 4000 to 384000 Hz" in str(refusal(hostile()["WAV of 3999 Hz"][0]))


def test_a_cut_file_is_told_what_was_promised_and_what_came():
    wav, mp3 = (str(refusal(hostile()[f"{name} cut at 60 %"][0])) for name in ("WAV", "MP3"))
    assert re.search(r"promises \d+ bytes of audio but \d+ are there", wav)
    assert re.search(r"promises \d\.\d\d s but \d\.\d\d s are there", mp3)


def test_a_stranger_is_described():
    for name, words in {
        "PNG": "an image (PNG)",
        "ZIP": "a ZIP archive",
        "JSON": "text",
        "zeros": "unknown bytes",
    }.items():
        error = refusal(hostile()[name][0])
        assert isinstance(error, UnsupportedAudio)
        assert f": {words};" in str(error)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_flac_cut_anywhere_is_refused(cut):
    data = odd()["16-bit FLAC"]
    assert isinstance(refusal(data[: len(data) * cut // 20]), InvalidAudio)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("tail", [b"", b"garbage" * 400, bytes(3_000)], ids=["nothing", "garbage", "zeros"])
def test_a_short_mp3_is_whole_whatever_follows_it_and_refused_when_cut(rate_hz, tail):
    file = io.BytesIO()
    sf.write(file, clip()[: 2 * SAMPLE_RATE_HZ], rate_hz, format="MP3")
    assert decode(file.getvalue() + tail, LIMIT_SECONDS).duration_seconds == pytest.approx(32_000 / rate_hz, abs=0.1)
    assert "promises" in str(refusal(file.getvalue()[: len(file.getvalue()) // 2]))


def test_a_stream_that_changes_its_rate_and_channels_on_the_way_is_read_to_its_end():
    first = odd()["AAC as ADTS"]
    second = odd_audio._ffmpeg(clip(), "adts", "aac", 44_100, "stereo")
    waveform = decode(first + second, LIMIT_SECONDS)
    alone = [decode(part, LIMIT_SECONDS) for part in (first, second)]
    assert waveform.duration_seconds == pytest.approx(sum(part.duration_seconds for part in alone), abs=0.1)
    for half in np.array_split(waveform.samples, 2):
        assert likeness(half, clip())[0] > 0.95


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
def test_compressed_audio_of_up_to_eight_channels_is_read(layout):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as muxer:
        stream = muxer.add_stream("aac", rate=48_000, layout=layout)
        samples = np.repeat(np.tile(clip()[:SAMPLE_RATE_HZ], 3), stream.layout.nb_channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate = 48_000
        planar = av.AudioResampler("fltp", layout, 48_000).resample(frame)
        muxer.mux([*(packet for part in planar for packet in stream.encode(part)), *stream.encode()])
    waveform = decode(file.getvalue(), LIMIT_SECONDS)
    assert waveform.duration_seconds == pytest.approx(1, abs=0.1)
    assert is_sound(waveform)


def test_ogg_files_in_a_chain_are_read_one_after_the_other():
    data = odd()["48 kHz stereo Ogg Opus"]
    waveform = decode(data + data, LIMIT_SECONDS)
    assert waveform.duration_seconds == pytest.approx(2 * len(clip()) / SAMPLE_RATE_HZ, abs=0.1)


def test_ten_hours_in_a_few_kilobytes_cost_neither_memory_nor_time(tmp_path):
    """In a process of its own, because only there the peak of the resident memory is that of the decoder."""
    for number, data in enumerate(odd_audio.bombs().values()):
        (tmp_path / f"{number}.bomb").write_bytes(data)
    (tmp_path / "clip.wav").write_bytes(odd()["44.1 kHz WAV"])
    (tmp_path / "clip.ogg").write_bytes(odd()["Ogg Opus"])
    program = """
import pathlib, resource, sys
from predictor.audio import decode
from predictor.errors import AudioTooLong
folder = pathlib.Path(sys.argv[1])
for path in folder.glob("clip.*"):
    decode(path.read_bytes(), 60)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in folder.glob("*.bomb"):
    try:
        decode(path.read_bytes(), 60)
    except AudioTooLong:
        print("too long", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    started = time.perf_counter()
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    grown_kib = [int(line.removeprefix("too long ")) for line in done.stdout.splitlines()]
    assert len(grown_kib) == len(odd_audio.bombs())
    assert max(grown_kib) < 32 * 1024  # 60 s are 4 MB, ten hours would be 2 GB
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("packet", [b"\x7c", b"\xff\xf1\x50\x80\x00\xff\xfc"], ids=["AMR", "AAC"])
def test_a_flood_of_packets_without_audio_is_refused_quickly(packet):
    data = (b"#!AMR\n" if len(packet) == 1 else b"") + packet * (1_000_000 // len(packet))
    started = time.perf_counter()
    assert isinstance(refusal(data), InvalidAudio)
    assert time.perf_counter() - started < 5


def test_four_threads_decode_what_one_decodes():
    files = list(odd().values())
    alone = [decode(data, LIMIT_SECONDS).samples for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decode(data, LIMIT_SECONDS).samples, files * 2))
    for number, samples in enumerate(together):
        np.testing.assert_array_equal(samples, alone[number % len(files)])


def decodes_or_is_refused(data: bytes) -> bool:
    try:
        return is_sound(decode(data, 5))
    except PredictorError as error:
        return type(error) in (InvalidAudio, UnsupportedAudio, AudioTooLong)


MAGICS = [b"", *(data for name, (data, _) in hostile().items() if name.startswith("nothing but the magic of"))]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(magic=st.sampled_from(MAGICS), noise=st.binary(max_size=600))
def test_any_bytes_decode_or_are_refused(magic, noise):
    assert decodes_or_is_refused(magic + noise)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    number=st.integers(0, 15),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    in_header=st.booleans(),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_any_mutilation_of_a_valid_file_decodes_or_is_refused(number, edits, in_header, kept):
    data = bytearray(short_files()[number])
    for where, noise in edits:
        at = int(where * (min(200, len(data)) if in_header else len(data)))
        data[at : at + len(noise)] = noise
    assert decodes_or_is_refused(bytes(data[: int(kept * len(data))]))
