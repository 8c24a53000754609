"""Every odd file is understood by a running server, every hostile one is refused by its status, and it lives on."""

import time
from functools import cache

import httpx
import jiwer
import odd_audio
import pytest
from asking import INFER, outputs, v2
from serving import Server, serving

from demo import testset
from predictor import answers
from predictor.audio import decode
from predictor.errors import PredictorError

CLIP = "vi-natural-134"
LIMIT_SECONDS = 1_800.0  # the server's default
SLOWEST_SECONDS = 10.0
GROWTH_BYTES = 100e6

# What a way of writing may cost, as a character error rate against the plain clip's transcript, and why: these formats
# throw sound away that the model uses. All others must give the very same text. The longest key that fits counts.
MAY_COST = {
    "": 0.0,
    "8 kHz WAV": 0.1,  # nothing above 4 kHz is left of the consonants
    "telephone": 0.1,  # the same, in eight bits
    "GSM": 0.15,  # the same, at 13 kbit/s
    "AMR": 0.3,  # the same, at 4.75 kbit/s
    "11.025": 0.05,  # nothing above 5.5 kHz
    "A-law": 0.05,  # eight bits a sample, and noise at -38 dB
    "mu-law": 0.05,
    "8-bit": 0.05,  # noise of a whole step at every level: the pauses are no longer silent
    "-40 dB": 0.05,  # seven bits of sixteen are left
    "ADPCM": 0.05,  # four bits a sample
    "MP3": 0.05,  # lossy at its encoders' default rates; Opus, Vorbis and AAC too
    "AAC": 0.05,
    "Opus": 0.05,
    "Vorbis": 0.05,
    "WebM": 0.05,
}


@cache
def plain() -> bytes:
    return odd_audio.plain(_samples())


@cache
def odd() -> dict[str, bytes]:
    return odd_audio.odd(_samples())


@cache
def hostile() -> dict[str, odd_audio.Refused]:
    return odd_audio.hostile(_samples())


def _samples() -> odd_audio.Samples:
    clip = next(clip for clip in testset.read() if clip.id == CLIP)
    return decode((testset.DIRECTORY / clip.audio).read_bytes(), LIMIT_SECONDS).samples


def ask_v2(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post(INFER, json=v2(data))


def ask_transcribe(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/transcribe", files={"file": ("clip", data)})


def understood(client: httpx.Client, data: bytes) -> tuple[str, str]:
    """The text and the language that a V2 request, which names none, comes back with."""
    found = outputs(ask_v2(client, data))
    return found["text"][0], found["language"][0]


@pytest.fixture(scope="module")
def said(client):
    """What the server makes of the plain clip: something close to what was said, or nothing below would mean much."""
    text, language = understood(client, plain())
    assert language == "vi"
    clip = next(clip for clip in testset.read() if clip.id == CLIP)
    assert jiwer.cer(clip.text, text) <= 0.05
    return text


@pytest.mark.parametrize("name", odd())
def test_an_odd_file_is_understood_as_the_plain_clip_is(client, said, name):
    text, language = understood(client, odd()[name])
    cost = jiwer.cer(said, text)
    assert language == "vi"
    assert cost <= MAY_COST[max((key for key in MAY_COST if key in name), key=len)], text


def status_of(error: type[PredictorError]) -> int:
    status, _ = next(answers.STATUS[kind] for kind in error.__mro__ if kind in answers.STATUS)
    return status


@pytest.mark.parametrize("name", hostile())
@pytest.mark.parametrize("ask", [ask_v2, ask_transcribe], ids=["v2", "transcribe"])
def test_a_hostile_file_is_refused_by_its_errors_status_with_one_sentence_and_soon(client, ask, name):
    data, error = hostile()[name]
    started = time.perf_counter()
    response = ask(client, data)
    seconds = time.perf_counter() - started
    assert response.status_code == status_of(error), response.text
    assert [*response.json()] == ["error"]
    sentence = response.json()["error"]
    assert isinstance(sentence, str)
    assert len(sentence) > 10
    assert "\n" not in sentence
    assert seconds < SLOWEST_SECONDS


def test_an_over_long_file_is_refused_with_the_limit(client):
    for data in odd_audio.bombs().values():
        assert ask_v2(client, data).json() == {"error": "the audio is longer than the limit of 1800 seconds"}


def _attack(server: Server, rounds: int) -> None:
    """Every hostile file, by both routes."""
    with server.client() as client:
        for _ in range(rounds):
            for data, error in hostile().values():
                for ask in (ask_v2, ask_transcribe):
                    assert ask(client, data).status_code == status_of(error)


def test_after_two_rounds_of_hostile_files_the_server_understands_as_before_and_has_not_grown(tmp_path, said):
    with serving(tmp_path / "log") as server, server.client() as client:
        for _ in range(5):
            assert understood(client, plain()) == (said, "vi")
        warm_bytes = server.resident_bytes()
        _attack(server, rounds=2)
        assert server.process.poll() is None
        assert client.get("/health").json()["status"] == "healthy"
        assert understood(client, plain()) == (said, "vi")
        assert server.resident_bytes() - warm_bytes < GROWTH_BYTES
        assert "Traceback" not in server.log.read_text()
