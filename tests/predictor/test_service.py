"""predictor.service: what many callers get is what the Recognizer says, and whatever happens, everything is given back.

The model is the real one. Where something has to be caught in the act, its engine is behind a gate.
"""

import asyncio
import gc
import threading
from contextlib import aclosing, suppress
from dataclasses import replace

import numpy as np
import odd_audio
import pytest
from prometheus_client import REGISTRY

from demo import testset
from predictor import keys, telemetry
from predictor.access import Key, Meter
from predictor.audio import Pcm
from predictor.cache import TranscriptCache
from predictor.call import Call
from predictor.errors import (
    AudioTooLong,
    BadRequest,
    DeadlineExceeded,
    InferenceFailed,
    InvalidAudio,
    Overloaded,
    RateLimited,
    UnsupportedAudio,
)
from predictor.features import SAMPLE_RATE_HZ
from predictor.models import Model
from predictor.protocol import Clip
from predictor.recognizer import Recognizer
from predictor.scheduling import Scheduler
from predictor.service import Service
from predictor.settings import EMBEDDED_BUNDLE
from predictor.tracing import Trace

PATIENCE_SECONDS = 20.0
SILENCE = np.zeros(SAMPLE_RATE_HZ, np.float32)
CLIPS = testset.read()[::32]


class Gated:
    """The real engine, which can be made to wait or to fail; counts what reaches it."""

    def __init__(self, engine):
        self._engine, self.rule = engine, engine.rule
        self.calls = 0
        self.begun, self.opened = threading.Event(), threading.Event()
        self.failure = None
        self.together = None  # a barrier, to make calls end at the same time
        self.opened.set()

    def infer(self, batch):
        self.calls += 1
        self.begun.set()
        assert self.opened.wait(PATIENCE_SECONDS)
        with suppress(threading.BrokenBarrierError):
            if self.together:
                self.together.wait(1.0)
        if self.failure:
            raise self.failure
        return self._engine.infer(batch)


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture
def model(recognizer):
    made = replace(recognizer, engine=Gated(recognizer.engine))
    telemetry.loaded("vani-demo", "1", made.bundle.digest, 0.1)
    yield Model("vani-demo", made, 0.1)
    telemetry.unloaded("vani-demo", "1", made.bundle.digest)


@pytest.fixture
def service(model):
    """Call it for a Service; in the end nothing may be left of anything, whatever happened."""
    made = []

    def make(max_pending_seconds=600.0, streams=2, known=None):
        made.append(Service(Scheduler(streams, 2, max_pending_seconds), Meter(), known))
        return made[-1]

    yield make
    model.recognizer.engine.opened.set()
    for one in made:
        one.scheduler.stop()
        assert one.scheduler.audio.total == 0
        assert one.scheduler.queued_frames == 0
    assert _in_flight() == 0
    assert _value("inference_in_progress", model="vani-demo") == 0


def _value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def _in_flight():
    return _value("vani_asr_audio_seconds_in_flight")


def _call(timeout_seconds=60.0, caller="a", key=None):
    return Call("r1", caller, Trace("0" * 32, "0" * 16, sampled=False), timeout_seconds, None, key)


def _key(limit=600.0):
    return Key("web", keys.digest_of("secret"), limit)


def _file(clip):
    return (testset.DIRECTORY / clip.audio).read_bytes()


@pytest.fixture(scope="module")
def long(recognizer):
    """Half a minute of both languages with pauses between, as a WAV; the first second says nothing."""
    parts = [SILENCE]
    for clip in CLIPS[:4] + CLIPS[-4:]:
        parts += [recognizer.decode(_file(clip)).samples, SILENCE]
    return odd_audio.plain(np.concatenate(parts))


@pytest.fixture
def narrow(model):
    """The same model with windows of three seconds: recordings are cut in words, and windows overlap."""
    bundle = replace(model.recognizer.bundle, max_window_seconds=3.0)
    return replace(model, recognizer=replace(model.recognizer, bundle=bundle))


async def _begun(model):
    assert await asyncio.to_thread(model.recognizer.engine.begun.wait, PATIENCE_SECONDS)


# Transcripts


async def test_many_callers_at_once_get_what_the_recognizer_says(service, model):
    one = service()
    files = [_file(clip) for clip in CLIPS]
    asked = [
        Clip(data, clip.language if number % 2 else None)
        for number, (clip, data) in enumerate(zip(CLIPS, files, strict=True))
    ]
    answers = await asyncio.gather(
        *(one.transcribe(_call(caller=f"caller-{number % 3}"), model, [clip]) for number, clip in enumerate(asked))
    )
    assert [answer for (answer,) in answers] == [model.recognizer.transcribe(c.data, c.language) for c in asked]


async def test_clips_of_one_request_come_back_in_their_order(service, model):
    one, call = service(), _call()
    asked = [Clip(_file(clip), clip.language) for clip in CLIPS[:5]]
    answers = await one.transcribe(call, model, asked)
    assert answers == [model.recognizer.transcribe(c.data, c.language) for c in asked]
    assert call.language == answers[0].language
    assert call.facts == {"clips": 5, "audio_seconds": round(sum(a.duration_seconds for a in answers), 2)}


@pytest.mark.parametrize("language", [None, "vi", "hi"])
async def test_a_long_recording_is_what_the_recognizer_says(service, model, narrow, long, language):
    one = service()
    for served in (model, narrow):
        (answer,) = await one.transcribe(_call(), served, [Clip(long, language)])
        assert answer == served.recognizer.transcribe(long, language)
        assert len(answer.words) > 10
    windows = narrow.recognizer.split(narrow.recognizer.decode(long))
    assert any(window.overlap_seconds for window in windows)


async def test_hotwords_are_listened_for(service, model):
    clip, hotwords = CLIPS[0], ("Hải Phòng", "cháo gà")
    (answer,) = await service().transcribe(_call(), model, [Clip(_file(clip), clip.language, hotwords)])
    assert answer == model.recognizer.transcribe(_file(clip), clip.language, hotwords)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, Pcm])
async def test_audio_comes_as_a_file_a_part_of_a_body_or_samples(service, model, kind, dtype):
    data = _file(CLIPS[1])
    if kind is Pcm:
        samples = model.recognizer.decode(data).samples
        held = Pcm(samples if dtype == "float32" else np.round(samples * 32_767).astype(np.int16), SAMPLE_RATE_HZ)
    else:
        held = kind(data)
    (answer,) = await service(known=TranscriptCache(1 << 20)).transcribe(_call(), model, [Clip(held)])
    assert answer.text == model.recognizer.transcribe(data).text


async def test_silence_is_no_words_and_no_language(service, model):
    (answer,) = await service().transcribe(_call(), model, [Clip(odd_audio.plain(SILENCE))])
    assert (answer.text, answer.language, answer.words, answer.duration_seconds) == ("", None, (), 1.0)


# Pieces


async def _streamed(service, call, model, clip):
    with service.place(call) as place:
        prepared = await service.prepare(call, model, clip, place)
        async with aclosing(service.stream(call, model, clip, prepared)) as pieces:
            return [piece async for piece in pieces]


@pytest.mark.parametrize("language", [None, "vi"])
async def test_the_pieces_of_a_stream_joined_are_the_whole(service, model, narrow, long, language):
    one = service()
    for served in (model, narrow):
        call = _call()
        pieces = await _streamed(one, call, served, Clip(long, language))
        whole = served.recognizer.transcribe(long, language)
        assert len(pieces) > 3
        assert tuple(word for piece in pieces for word in piece.words) == whole.words
        assert pieces[-1].language == whole.language == call.language
        assert call.facts["audio_seconds"] == round(whole.duration_seconds, 2)


async def test_the_first_piece_of_a_stream_comes_before_the_last_is_recognised(service, model, long):
    one, engine = service(streams=1), model.recognizer.engine
    clip = Clip(long, "vi")
    with one.place(_call()) as place:
        prepared = await one.prepare(_call(), model, clip, place)
        async with aclosing(one.stream(_call(), model, clip, prepared)) as pieces:
            await anext(pieces)
            assert engine.calls < len(prepared.windows)
            assert one.scheduler.audio.total > 0
    assert one.scheduler.audio.total == 0


async def test_a_stream_that_nobody_reads_any_more_leaves_nothing_behind(service, model, long):
    one, engine = service(streams=1), model.recognizer.engine
    with one.place(_call()) as place:
        prepared = await one.prepare(_call(), model, Clip(long, "vi"), place)
        pieces = one.stream(_call(), model, Clip(long, "vi"), prepared)
        await anext(pieces)
        await pieces.aclose()
    assert (one.scheduler.audio.total, _in_flight()) == (0, 0)
    await asyncio.to_thread(one.scheduler.stop)
    assert engine.calls < len(prepared.windows)


async def test_a_stream_has_the_calls_time_and_no_more(service, model, long):
    one, engine, call = service(), model.recognizer.engine, _call()
    with one.place(call) as place:
        prepared = await one.prepare(call, model, Clip(long, "vi"), place)
        engine.opened.clear()
        call.timeout_seconds = 0.05
        with pytest.raises(DeadlineExceeded):
            await anext(one.stream(call, model, Clip(long, "vi"), prepared))
    assert one.scheduler.audio.total == 0


# Whatever happens


@pytest.mark.parametrize("windows", ["one", "several"])
async def test_a_call_whose_time_is_up_is_told_so_and_its_work_is_dropped(service, model, long, windows):
    one, engine = service(streams=1), model.recognizer.engine
    engine.opened.clear()
    first = asyncio.create_task(one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))]))
    await _begun(model)
    data, served = (_file(CLIPS[1]), model) if windows == "one" else (long, model)
    with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.2 s"):
        await one.transcribe(_call(0.2), served, [Clip(data, "vi")])
    assert one.scheduler.audio.total == pytest.approx(model.recognizer.decode(_file(CLIPS[0])).duration_seconds)
    engine.opened.set()
    await first
    await asyncio.to_thread(one.scheduler.stop)
    assert engine.calls == 1
    assert one.scheduler.dropped >= 1


async def test_a_call_that_comes_too_late_never_reaches_the_engine(service, model):
    one, call = service(), _call(1e-9)
    for clips in ([Clip(_file(CLIPS[0]))], [Clip(_file(clip)) for clip in CLIPS[:3]]):
        with pytest.raises(DeadlineExceeded):
            await one.transcribe(call, model, clips)
    await asyncio.to_thread(one.scheduler.stop)
    assert model.recognizer.engine.calls == 0


@pytest.mark.parametrize("several", [False, True])
async def test_a_call_that_is_cancelled_gives_everything_back_at_once(service, model, long, several):
    one, engine = service(streams=1), model.recognizer.engine
    engine.opened.clear()
    clips = [Clip(long, "vi"), Clip(_file(CLIPS[1])), Clip(_file(CLIPS[2]))][: 3 if several else 1]
    task = asyncio.create_task(one.transcribe(_call(), model, clips))
    await _begun(model)
    await one.scheduler.prepare("b", 1, int)  # whatever was decoded before it has been accepted
    assert one.scheduler.audio.total > 0
    assert _in_flight() == pytest.approx(one.scheduler.audio.total, abs=1e-5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (one.scheduler.audio.total, _in_flight()) == (0, 0)
    assert _value("inference_in_progress", model="vani-demo") == 0
    engine.opened.set()
    await asyncio.to_thread(one.scheduler.stop)
    assert engine.calls == 1


@pytest.mark.parametrize(
    ("clip", "error"),
    [
        (Clip(b""), InvalidAudio),
        (Clip(b"<html>"), UnsupportedAudio),
        (Clip(odd_audio.plain(SILENCE)[:20_000]), InvalidAudio),
        (Clip(odd_audio.plain(SILENCE), "xx"), BadRequest),
        (Clip(Pcm(np.zeros(0, np.int16), 16_000)), InvalidAudio),
        (Clip(Pcm(np.zeros(1_801 * 4_000, np.uint8), 4_000)), AudioTooLong),
    ],
    ids=["empty", "HTML", "cut", "language", "no samples", "too long"],
)
@pytest.mark.parametrize("beside", [0, 2])
async def test_a_bad_clip_fails_its_request_with_its_error_and_no_other(service, model, clip, error, beside):
    one = service()
    good = [Clip(_file(CLIPS[0]))] * beside
    with pytest.raises(error) as caught:
        await one.transcribe(_call(), model, [*good, clip])
    assert type(caught.value) is error
    assert await one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))])


@pytest.mark.parametrize("failure", [RuntimeError("secret"), InferenceFailed()], ids=["unforeseen", "foreseen"])
async def test_an_engine_that_fails_fails_the_call_and_not_the_service(service, model, long, failure):
    one, engine = service(), model.recognizer.engine
    for language in (None, "vi"):
        engine.failure = failure
        with pytest.raises(InferenceFailed, match="not the caller's"):
            await one.transcribe(_call(), model, [Clip(long, language)])
        engine.failure = None
        assert await one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))])


async def test_windows_that_fail_side_by_side_leave_no_complaint_of_the_event_loop(service, model, long, caplog):
    one, engine = service(streams=3), model.recognizer.engine
    engine.failure, engine.together = InferenceFailed(), threading.Barrier(3)
    with pytest.raises(InferenceFailed):
        await one.transcribe(_call(), model, [Clip(long, "vi")])
    await asyncio.to_thread(one.scheduler.stop)
    await asyncio.sleep(0.01)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_caller_is_refused_where_the_audio_budget_is_used_up(service, model):
    one, engine = service(max_pending_seconds=1.0, streams=1), model.recognizer.engine
    engine.opened.clear()
    first = asyncio.create_task(one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))]))
    await _begun(model)
    with pytest.raises(Overloaded, match="seconds of audio") as caught:
        await one.transcribe(_call(), model, [Clip(_file(CLIPS[1]))])
    assert 1 <= caught.value.retry_after_seconds <= 30
    engine.opened.set()
    assert await first


async def test_one_request_of_many_clips_is_never_too_large(service, model):
    clips = [Clip(_file(clip)) for clip in CLIPS[:6]]
    engine = model.recognizer.engine
    engine.opened.clear()
    task = asyncio.create_task(service(max_pending_seconds=4.0).transcribe(_call(), model, clips))
    await _begun(model)
    await asyncio.wait([task], timeout=0.3)
    engine.opened.set()
    assert len(await task) == 6


async def test_a_long_recording_has_one_window_more_on_its_way_than_there_are_streams(service, model, long):
    one = service(streams=2)
    recognize, at_once, most = one.recognize, 0, 0

    async def counted(*arguments):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await recognize(*arguments)
        finally:
            at_once -= 1

    one.recognize = counted
    await one.transcribe(_call(), model, [Clip(long, "vi")])
    assert most == 3


# Meter and cache


async def test_a_key_is_charged_once_for_what_it_sent(service, model, long):
    one, key = service(), _key(limit=600.0)
    call = _call(key=key)
    (answer,) = await one.transcribe(call, model, [Clip(long)])
    left = one._meter._left("web", 600.0)
    assert 600 - left == pytest.approx(answer.duration_seconds, abs=5)  # five seconds come back in half a second
    await _streamed(one, call, model, Clip(long))
    assert 600 - one._meter._left("web", 600.0) == pytest.approx(2 * answer.duration_seconds, abs=15)


async def test_a_key_in_debt_is_refused_at_the_door(service, model, long):
    one, key = service(), _key(limit=1.0)
    await one.transcribe(_call(key=key), model, [Clip(long)])
    with pytest.raises(RateLimited):
        one._meter.check(key)


async def test_who_is_refused_for_lack_of_room_is_not_charged(service, model):
    one, key, engine = service(max_pending_seconds=2.0, streams=1), _key(), model.recognizer.engine
    engine.opened.clear()
    first = asyncio.create_task(one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))]))
    await _begun(model)
    with one.scheduler.audio.hold("web", 5), pytest.raises(Overloaded):
        await one.transcribe(_call(caller="web", key=key), model, [Clip(_file(CLIPS[1]))])
    engine.opened.set()
    await first
    assert one._meter._left("web", 600.0) == 600.0


async def test_audio_that_comes_again_is_answered_from_the_cache_and_charged(service, model):
    one, key, clip = service(known=TranscriptCache(1 << 20)), _key(), Clip(_file(CLIPS[0]))
    hits, misses = (_value("vani_asr_cache_lookups_total", result=kind) for kind in ("hit", "miss"))
    first, second = _call(key=key), _call(key=key)
    (answer,) = await one.transcribe(first, model, [clip])
    calls = model.recognizer.engine.calls
    assert await one.transcribe(second, model, [clip]) == [answer]
    assert model.recognizer.engine.calls == calls
    assert second.facts["cache"] == "hit"
    assert "cache" not in first.facts
    assert second.language == answer.language
    assert 600 - one._meter._left("web", 600.0) == pytest.approx(2 * answer.duration_seconds, abs=3)
    assert _value("vani_asr_cache_lookups_total", result="hit") == hits + 1
    assert _value("vani_asr_cache_lookups_total", result="miss") == misses + 1


async def test_the_cache_answers_for_the_same_audio_asked_in_the_same_way_alone(service, model):
    one = service(known=TranscriptCache(1 << 20))
    samples = model.recognizer.decode(_file(CLIPS[0])).samples
    pcm = np.round(samples * 32_767).astype(np.int16)
    other = replace(
        model,
        recognizer=replace(model.recognizer, bundle=replace(model.recognizer.bundle, digest="sha256:" + "0" * 64)),
    )
    for served, clip in [
        (model, Clip(Pcm(pcm, 16_000))),
        (model, Clip(Pcm(pcm, 8_000))),
        (model, Clip(Pcm(pcm.view(np.uint8), 16_000))),
        (model, Clip(Pcm(pcm, 16_000), "vi")),
        (model, Clip(Pcm(pcm, 16_000), "hi")),
        (model, Clip(Pcm(pcm, 16_000), "vi", ("Hà Nội",))),
        (other, Clip(Pcm(pcm, 16_000))),
        (model, Clip(odd_audio.plain(pcm))),
    ]:
        call = _call()
        await one.transcribe(call, served, [clip])
        assert "cache" not in call.facts
    call = _call()
    await one.transcribe(call, model, [Clip(Pcm(np.repeat(pcm, 2)[::2], 16_000))])  # the samples, differently laid out
    assert call.facts["cache"] == "hit"


async def test_what_failed_is_not_kept(service, model):
    known = TranscriptCache(1 << 20)
    one, engine = service(known=known), model.recognizer.engine
    engine.failure = InferenceFailed()
    with pytest.raises(InferenceFailed):
        await one.transcribe(_call(), model, [Clip(_file(CLIPS[0]))])
    assert len(known) == 0
