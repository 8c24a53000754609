"""Clips to Transcripts for many callers at once: the path of `predictor.recognizer`, with every step in its threads.

    prepare: decode, split, extract -> budget -> queue -> engine: infer, search -> stitch

Whatever the protocol, it comes through here, so limits, the cache, metrics and traces are in one place.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor import cache, telemetry, transcript
from predictor.access import Meter
from predictor.audio import Pcm
from predictor.cache import CacheKey, TranscriptCache
from predictor.call import Call
from predictor.engine import Emission
from predictor.errors import DeadlineExceeded
from predictor.models import Model
from predictor.protocol import Clip
from predictor.scheduling import Done, Follow, Place, Scheduler
from predictor.search import Decoding
from predictor.segments import Window
from predictor.telemetry import Stage
from predictor.transcript import Transcript, Word


@dataclass(frozen=True, slots=True)
class Prepared:
    """A clip, decoded and cut: its windows, and the features [mel, T] of the first."""

    seconds: float
    windows: list[Window]
    features: NDArray[np.float32]
    bounds: tuple[float, float, float]  # when decoding began, when it ended, when the features were there
    container: str  # of the file, or "PCM"


@dataclass(frozen=True, slots=True)
class Piece:
    """Words that follow those of the piece before, final; the language as far as it is known."""

    words: list[Word]
    language: str | None


Heard = tuple[Prepared, list[Word], str | None]  # a clip of one window, its words and language


class Service:
    """Belongs to one event loop."""

    def __init__(self, scheduler: Scheduler, meter: Meter, known: TranscriptCache | None = None) -> None:
        self.scheduler, self._meter, self._known = scheduler, meter, known

    async def transcribe(self, call: Call, model: Model, clips: Sequence[Clip]) -> list[Transcript]:
        """The transcripts of one request's clips, worked on side by side; one bad clip fails the request.

        Raises any PredictorError but InvalidBundle; DeadlineExceeded when the call's time is up.
        """
        with self.place(call) as place:
            async with within(call):
                transcripts = await self._side_by_side(call, model, clips, place)
        self._note(call, transcripts)
        return transcripts

    def place(self, call: Call) -> Place:
        """Room for a request's audio, which is shown to who scales by it."""
        return Place(self.scheduler.audio, call.caller, telemetry.in_flight)

    async def _side_by_side(self, call: Call, model: Model, clips: Sequence[Clip], place: Place) -> list[Transcript]:
        if len(clips) == 1:
            return [await self._transcribe(call, model, clips[0], place)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._transcribe(call, model, clip, place)) for clip in clips]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _transcribe(self, call: Call, model: Model, clip: Clip, place: Place) -> Transcript:
        model.recognizer.check(clip.language, clip.decoding)
        with telemetry.transcribing(model.digest, clip.language):
            if self._known is None:
                return await self._transcribe_new(call, model, clip, place)
            key = await self.scheduler.prepare(call.caller, _size(clip), _cache_key, model, clip)
            known = self._known.get(key)
            telemetry.cache(hit=known is not None)
            if known is not None:
                self._charge(call, known.duration_seconds)
                call.facts["cache"] = "hit"
                return known
            result = await self._transcribe_new(call, model, clip, place)
            self._known.put(key, result)
            return result

    async def _transcribe_new(self, call: Call, model: Model, clip: Clip, place: Place) -> Transcript:
        started = time.perf_counter()
        begun: Prepared | Done[Heard] = await self.scheduler.prepare_and_infer(
            call.caller, _size(clip), _begin, model, clip, place
        )
        if isinstance(begun, Done):
            prepared, words, language = begun.value
            self._record(call, prepared, started)
            self._record_window(call, begun, prepared.features)
        else:
            prepared, words, language = begun, [], clip.language
            self._record(call, prepared, started)
            async with aclosing(self.pieces(call, model, clip, prepared)) as pieces:
                async for piece in pieces:
                    words += piece.words
                    language = piece.language
        result = transcript.join(words, language, prepared.seconds)
        telemetry.transcribed(model.digest, result, time.perf_counter() - started, prepared.container)
        return result

    async def stream(self, call: Call, model: Model, clip: Clip, prepared: Prepared) -> AsyncGenerator[Piece]:
        """`pieces` within the call's time, and counted in the end as `transcribe` counts."""
        words: list[Word] = []
        piece = Piece([], clip.language)
        async with aclosing(self.pieces(call, model, clip, prepared)) as pieces:
            while True:
                async with within(call):
                    following = await anext(pieces, None)
                if following is None:
                    break
                piece = following
                words += piece.words
                yield piece
        result = transcript.join(words, piece.language, prepared.seconds)
        self._note(call, [result])
        telemetry.transcribed(model.digest, result, time.perf_counter() - call.started, prepared.container)

    async def prepare(self, call: Call, model: Model, clip: Clip, place: Place) -> Prepared:
        """Decode and cut a clip, take a place for it, and charge its caller."""
        model.recognizer.check(clip.language, clip.decoding)
        queued = time.perf_counter()
        async with within(call):
            prepared = await self.scheduler.prepare(call.caller, _size(clip), _prepare, model, clip, place)
        self._record(call, prepared, queued)
        return prepared

    def _record(self, call: Call, prepared: Prepared, queued: float) -> None:
        began, decoded, extracted = prepared.bounds
        _stage(call, "decode", began, decoded, waited_ms=round((began - queued) * 1000, 3))
        _stage(call, "features", decoded, extracted)
        self._charge(call, prepared.seconds)

    def _record_window(self, call: Call, done: Done[Any], frames: NDArray[np.float32]) -> None:
        telemetry.queued(self.scheduler.queued_frames)
        _stage(call, "queue", done.queued_seconds, done.taken_seconds)
        _stage(call, "infer", done.taken_seconds, done.inferred_seconds, rows=done.rows, frames=frames.shape[1])
        _stage(call, "search", done.inferred_seconds, done.done_seconds)

    async def pieces(self, call: Call, model: Model, clip: Clip, prepared: Prepared) -> AsyncGenerator[Piece]:
        """The words of a prepared clip, piece by piece as its windows are done, none lost or doubled at a seam."""
        windows = prepared.windows
        held: list[Word] = []  # the next window may have heard the end of this one better
        async with aclosing(self._heard(call, model, clip, prepared)) as heard:
            async for number, words, language in heard:
                window, fresh = windows[number], words
                if window.overlap_seconds:
                    end = window.start_seconds + window.overlap_seconds
                    held, fresh = transcript.stitch(held, words, window.start_seconds, end)
                if number + 1 == len(windows) or not windows[number + 1].overlap_seconds:
                    yield Piece([*held, *fresh], language)
                    held = []
                else:
                    yield Piece(held, language)
                    held = fresh

    async def _heard(
        self, call: Call, model: Model, clip: Clip, prepared: Prepared
    ) -> AsyncGenerator[tuple[int, list[Word], str | None]]:
        """Number, words and language of each window, in order.

        One at a time while the language is unknown; then as many at once as the engine has streams, and one more whose
        features are made meanwhile: so a long recording uses every idle core, and yet lets others in between.
        """
        language, windows = clip.language, prepared.windows
        ahead: deque[tuple[int, asyncio.Task[tuple[list[Word], str | None]]]] = deque()
        try:
            for number, window in enumerate(windows):
                frames = prepared.features if number == 0 else None
                work = self.recognize(call, model, window, language, clip.hotwords, frames, clip.decoding)
                if language is None or len(windows) == 1:
                    words, language = await work
                    yield number, words, language
                    continue
                ahead.append((number, asyncio.create_task(work)))
                if len(ahead) > self.scheduler.streams:
                    first, task = ahead.popleft()
                    yield first, *await task
            while ahead:
                first, task = ahead.popleft()
                yield first, *await task
        finally:
            for _, task in ahead:
                task.cancel()

    async def recognize(  # noqa: PLR0913, PLR0917  (a window, and whose it is)
        self,
        call: Call,
        model: Model,
        window: Window,
        language: str | None,
        hotwords: Sequence[str] = (),
        frames: NDArray[np.float32] | None = None,
        decoding: Decoding = "ctc",
    ) -> tuple[list[Word], str | None]:
        """`Recognizer.recognize`, through the scheduler; `frames` are the window's features where they are there."""
        recognizer = model.recognizer
        if frames is None:
            frames = await self.scheduler.prepare(call.caller, window.samples.nbytes, recognizer.extract, window)
        search = partial(_search, model, window, language, tuple(hotwords), decoding)
        done = await self.scheduler.infer(call.caller, recognizer.engine, frames, search)
        self._record_window(call, done, frames)
        return done.value

    @staticmethod
    def _note(call: Call, transcripts: Sequence[Transcript]) -> None:
        call.language = transcripts[0].language
        seconds = sum(t.duration_seconds for t in transcripts)
        call.facts |= {"clips": len(transcripts), "audio_seconds": round(seconds, 2)}

    def _charge(self, call: Call, seconds: float) -> None:
        if call.key:
            self._meter.charge(call.key, seconds)


@asynccontextmanager
async def within(call: Call) -> AsyncIterator[None]:
    """Raises DeadlineExceeded in what takes longer than the call may."""
    try:
        async with asyncio.timeout(max(0.0, call.remaining_seconds)) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(call.timeout_seconds) from None


def _size(clip: Clip) -> int:
    return clip.data.samples.nbytes if isinstance(clip.data, Pcm) else len(clip.data)


def _cache_key(model: Model, clip: Clip) -> CacheKey:
    if isinstance(clip.data, Pcm):
        samples = np.ascontiguousarray(clip.data.samples)
        form = f"{model.digest} {clip.decoding} {samples.dtype} {clip.data.rate_hz}"
        return cache.key(samples.view(np.uint8).data, form, clip.language, clip.hotwords)
    return cache.key(memoryview(clip.data), f"{model.digest} {clip.decoding}", clip.language, clip.hotwords)


def _begin(model: Model, clip: Clip, place: Place) -> Prepared | Follow[Heard]:
    """Prepare a clip; where it is one window, as most are, go on with it."""
    prepared = _prepare(model, clip, place)
    if len(prepared.windows) > 1:
        return prepared

    def finish(emission: Emission) -> Heard:
        return prepared, *_search(model, prepared.windows[0], clip.language, clip.hotwords, clip.decoding, emission)

    return Follow(model.recognizer.engine, prepared.features, finish)


def _prepare(model: Model, clip: Clip, place: Place) -> Prepared:
    recognizer, began = model.recognizer, time.perf_counter()
    waveform = recognizer.decode(clip.data)
    place.take(waveform.duration_seconds)
    windows = recognizer.split(waveform)
    decoded = time.perf_counter()
    frames = recognizer.extract(windows[0])
    bounds = (began, decoded, time.perf_counter())
    return Prepared(waveform.duration_seconds, windows, frames, bounds, waveform.container)


def _search(  # noqa: PLR0913, PLR0917  (a window, and how it is to be heard)
    model: Model,
    window: Window,
    language: str | None,
    hotwords: tuple[str, ...],
    decoding: Decoding,
    emission: Emission,
) -> tuple[list[Word], str | None]:
    return model.recognizer.search(emission, window, language, hotwords, decoding)


def _stage(call: Call, name: Stage, began: float, ended: float, **attributes: float) -> None:
    telemetry.stage(name, ended - began)
    call.trace.stage(name, began, ended, **attributes)
