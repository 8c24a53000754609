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

from predictor.audio import Pcm, Waveform, decode, from_pcm
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


# Samples, as tensors and live audio bring them


def pcm_of(samples: np.ndarray, dtype: str, rate_hz: int = SAMPLE_RATE_HZ) -> Pcm:
    """Samples within [-1, 1] in a tensor's number format."""
    if dtype == "uint8":
        return Pcm(np.clip(np.round(samples * 128) + 128, 0, 255).astype(np.uint8), rate_hz)
    if dtype == "int16":
        return Pcm(np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16), rate_hz)
    return Pcm(samples.astype(np.float32), rate_hz)


@pytest.mark.parametrize(("dtype", "step"), [("float32", 0), ("int16", 1 / 32768), ("uint8", 1 / 128)])
def test_samples_of_every_format_are_the_same_sound(dtype, step):
    pcm = pcm_of(clip(), dtype)
    before = pcm.samples.copy()
    waveform = from_pcm(pcm, LIMIT_SECONDS)
    assert is_sound(waveform)
    assert np.abs(waveform.samples - clip()).max() <= step
    np.testing.assert_array_equal(pcm.samples, before)
    assert not np.shares_memory(waveform.samples, pcm.samples)


@pytest.mark.parametrize(
    ("samples", "values"),
    [
        (np.array([0, 1, -1, 32767, -32768], np.int16), [0, 2**-15, -(2**-15), 32767 / 32768, -1]),
        (np.array([128, 129, 0, 255], np.uint8), [0, 1 / 128, -1, 127 / 128]),
        (np.array([0, 0.25, -1, 1], np.float32), [0, 0.25, -1, 1]),
    ],
)
def test_samples_have_exact_values(samples, values):
    assert from_pcm(Pcm(samples, SAMPLE_RATE_HZ), 1).samples.tolist() == values


@pytest.mark.parametrize("rate_hz", [4_000, 8_000, 11_025, 16_000, 44_100, 48_000, 384_000])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_samples_are_what_a_file_of_them_is(dtype, rate_hz):
    pcm = pcm_of(clip()[:8_000], dtype, rate_hz)
    codec = {"int16": "PCM_16", "uint8": "PCM_U8", "float32": "FLOAT"}[dtype]
    held = pcm.samples if dtype != "uint8" else (pcm.samples.astype(np.int16) - 128) * 256
    file = decode(odd_audio.plain(held, rate_hz, codec=codec), LIMIT_SECONDS)
    waveform = from_pcm(pcm, LIMIT_SECONDS)
    assert len(waveform.samples) == len(file.samples)
    np.testing.assert_allclose(waveform.samples, file.samples, atol=1e-6)


def test_samples_are_treated_as_a_files_are():
    loud = from_pcm(Pcm(np.array([0.5, -4, 2], np.float32), SAMPLE_RATE_HZ), 1)
    assert loud.samples.tolist() == [0.125, -1, 0.5]
    shifted = from_pcm(Pcm(clip() / 2 + np.float32(0.2), SAMPLE_RATE_HZ), LIMIT_SECONDS)
    assert abs(float(shifted.samples.mean())) < 1e-4


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_the_limit_of_samples_is_inclusive_and_exact(rate_hz):
    exact = np.zeros(2 * rate_hz, np.int16)
    assert from_pcm(Pcm(exact, rate_hz), 2).duration_seconds == pytest.approx(2, abs=1e-4)
    with pytest.raises(AudioTooLong) as caught:
        from_pcm(Pcm(np.zeros(2 * rate_hz + 1, np.int16), rate_hz), 2)
    assert caught.value.limit_seconds == 2
    assert from_pcm(Pcm(exact, rate_hz), float("inf")).duration_seconds == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_very_few_samples_are_valid_at_16_khz(dtype, count):
    assert len(from_pcm(Pcm(np.ones(count, dtype), SAMPLE_RATE_HZ), 1).samples) == count


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (Pcm(np.zeros(0, np.int16), SAMPLE_RATE_HZ), "no samples"),
        (Pcm(np.zeros(9, np.int16), 3_999), "3999 Hz and must be 4000 to 384000 Hz"),
        (Pcm(np.zeros(9, np.int16), 384_001), "384001 Hz"),
        (Pcm(np.zeros(9, np.int16), 0), "0 Hz"),
        (Pcm(np.zeros(9, np.int16), -16_000), "-16000 Hz"),
        (Pcm(np.zeros(1, np.int16), 384_000), "shorter than one sample"),
        (Pcm(np.array([0, np.nan], np.float32), SAMPLE_RATE_HZ), "not numbers"),
        (Pcm(np.array([0, np.inf], np.float32), SAMPLE_RATE_HZ), "not numbers"),
        (Pcm(np.full(4_000, -np.inf, np.float32), 44_100), "not numbers"),
        (Pcm(np.array([3e38, -3e38] * 2_000, np.float32), 8_000), ""),
    ],
    ids=["none", "slow", "fast", "zero", "negative", "too few", "NaN", "infinite", "infinite, resampled", "overflow"],
)
def test_samples_that_cannot_be_used_are_refused_or_made_sound(pcm, words):
    if not words:
        try:
            assert is_sound(from_pcm(pcm, LIMIT_SECONDS))
        except InvalidAudio as error:
            assert "not numbers" in str(error)  # noqa: PT017  (either is right)
        return
    with pytest.raises(InvalidAudio, match=words):
        from_pcm(pcm, LIMIT_SECONDS)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    data=st.binary(min_size=4, max_size=400),
    dtype=st.sampled_from([np.float32, np.int16, np.uint8]),
    rate_hz=st.integers(3_000, 50_000),
)
def test_any_samples_are_sound_or_refused(data, dtype, rate_hz):
    samples = np.frombuffer(data[: len(data) // 4 * 4], dtype)
    try:
        assert is_sound(from_pcm(Pcm(samples, rate_hz), 1))
    except PredictorError as error:
        assert type(error) is InvalidAudio  # noqa: PT017


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
