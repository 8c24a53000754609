"""Concurrent requests to engine calls: budgets at the door, fair queues, and threads of two kinds.

    budget   what is held at once (requests, bytes, audio), shared fairly between callers
    queue    who is next, and who shares a batch

`Scheduler.prepare` runs decoding and features, `Scheduler.infer` the network; each has its own threads, so that neither
waits for the other. They take their work from the queue themselves: a busy event loop never leaves a core idle. Nothing
here knows HTTP or models. A deadline that passed, or a client that left, is a cancelled future: its work is dropped.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from predictor import features
from predictor.engine import Emission, Engine
from predictor.errors import InferenceFailed
from predictor.scheduling.budget import Budget, Place
from predictor.scheduling.queue import BatchQueue, FairQueue, Task, Utterance

__all__ = ["Budget", "Done", "Follow", "Place", "Scheduler"]

_MAX_RETRY_SECONDS = 30
_SPEED_MEMORY = 0.9  # the weight of the past in the engine's speed, a batch at a time

_LATER = object()  # stands for a result that an engine will tell of

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What became of an utterance, and when (seconds of time.perf_counter), among how many rows of a batch."""

    value: T
    queued_seconds: float
    taken_seconds: float
    inferred_seconds: float
    done_seconds: float
    rows: int


@dataclass(frozen=True, slots=True)
class Follow(Generic[T]):
    """What prepared work returns that is to be inferred at once: features [mel, T], and what is made of the emissions.

    Where the engine has nothing else to do, the thread that prepared goes on with it: waking another one costs more
    than a short clip's features.
    """

    engine: Engine
    frames: NDArray[np.float32]
    finish: Callable[[Emission], T]


class Scheduler:
    """The threads of one serving process. Belongs to one event loop.

    `streams` engine calls go side by side, and `preparers` pieces of other work; `max_pending_seconds` of audio may be
    on its way through (see Budget). `observe` is told, in an engine's thread, the rows, frames and padded frames of
    each batch.
    """

    def __init__(
        self,
        streams: int,
        preparers: int,
        max_pending_seconds: float,
        observe: Callable[[int, int, int], object] = lambda *_: None,
    ) -> None:
        self.audio = Budget("seconds of audio", max_pending_seconds, self._retry_after)
        self.streams, self._observe = streams, observe
        self._tasks: FairQueue[Task] = FairQueue()
        self._utterances = BatchQueue()
        # A token for each piece of work wakes one thread. A SimpleQueue of them costs half of what a Condition does.
        self._task_tokens: SimpleQueue[None] = SimpleQueue()
        self._utterance_tokens: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._inferring = self._preparing = True
        self._idle_streams = streams
        self._speed = math.inf  # frames of audio that one stream infers in a second
        self._engine_threads = [_started(self._infer_loop, f"engine-{n}") for n in range(streams)]
        self._prepare_threads = [_started(self._prepare_loop, f"prepare-{n}") for n in range(preparers)]

    @property
    def queued_frames(self) -> int:
        """The cost of what waits for the engine."""
        return round(self._utterances.cost)

    @property
    def dropped(self) -> int:
        """Pieces of work that nobody waited for any more when their turn came."""
        return self._tasks.dropped + self._utterances.dropped

    async def prepare(self, caller: str, cost: float, work: Callable[..., T], *args: object) -> T:
        """Run work that reads and prepares audio; `cost` in bytes."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = Task(caller, cost, future, partial(work, *args))
        self._push(task)
        try:
            return await future
        finally:
            task.work = _nothing  # the body of a caller who went away is not kept until its turn

    async def prepare_and_infer(
        self, caller: str, cost: float, work: Callable[..., T | Follow[U]], *args: object
    ) -> T | Done[U]:
        """`prepare`, and where the work returns a Follow, `infer`, without a way back to the event loop in between."""
        return cast("T | Done[U]", await self.prepare(caller, cost, work, *args))

    async def infer(
        self, caller: str, engine: Engine, frames: NDArray[np.float32], finish: Callable[[Emission], T]
    ) -> Done[T]:
        """Run the network over features [mel, T] and `finish` over its emissions; raises InferenceFailed."""
        future: asyncio.Future[Done[T]] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._utterances.push(Utterance(caller, frames.shape[1], future, engine, frames, finish))
        self._utterance_tokens.put(None)
        return await future

    def stop(self) -> None:
        """Let the threads go; what waits is finished first."""
        self._inferring = False
        _end(self._engine_threads, self._utterance_tokens)
        self._preparing = False
        _end(self._prepare_threads, self._task_tokens)

    def _retry_after(self) -> int:
        """Seconds in which the engine will have worked off the audio that was accepted."""
        seconds = self.audio.total / features.FRAME_SECONDS / (self._speed * self.streams)
        return min(_MAX_RETRY_SECONDS, max(1, math.ceil(seconds)))

    def _push(self, task: Task) -> None:
        with self._lock:
            self._tasks.push(task)
        self._task_tokens.put(None)

    def _prepare_loop(self) -> None:
        while task := self._next_task():
            self._run(task.future, partial(self._prepared, task))

    def _prepared(self, task: Task) -> object:
        result = task.work()
        return self._followed(task, result) if isinstance(result, Follow) else result

    def _followed(self, task: Task, follow: Follow[Any]) -> object:
        """Infer in this thread where a stream is idle and nobody waits for it, else queue; unless nobody waits for this
        any more."""
        if task.future.done():
            return _LATER
        length = follow.frames.shape[1]
        item = Utterance(task.caller, length, task.future, follow.engine, follow.frames, follow.finish)
        with self._lock:
            alone = bool(self._idle_streams) and not self._utterances and follow.engine.rule.max_rows == 1
            if alone:
                self._idle_streams -= 1
            else:
                self._utterances.push(item)
        if alone:
            try:
                self._infer_or_fail([item])
            finally:
                self._stream_is_idle()
        else:
            self._utterance_tokens.put(None)
        return _LATER

    def _next_task(self) -> Task | None:
        while True:
            self._task_tokens.get()
            with self._lock:
                task = self._tasks.pop()
            if task is not None or not self._preparing:
                return task

    def _infer_loop(self) -> None:
        while batch := self._next_batch():
            self._infer_or_fail(batch)
            self._stream_is_idle()

    def _infer_or_fail(self, batch: list[Utterance]) -> None:
        try:
            self._infer(batch)
        except Exception as error:  # noqa: BLE001  (it fails this batch and nothing else)
            failure = _as_failure(error)
            for item in batch:
                _tell(item.future, failure, None)

    def _stream_is_idle(self) -> None:
        with self._lock:
            self._idle_streams += 1
            waiting = bool(self._utterances)
        if waiting:
            self._utterance_tokens.put(None)

    def _next_batch(self) -> list[Utterance]:
        wait_seconds, tokens = math.inf, 0
        while True:
            with suppress(Empty):  # a batch that fills up before its time is up wakes a thread as it does
                self._utterance_tokens.get(timeout=None if math.isinf(wait_seconds) else wait_seconds)
                tokens += 1
            with self._lock:
                if self._idle_streams or not self._inferring:
                    batch, wait_seconds = self._utterances.take(patient=self._inferring)
                    self._idle_streams -= bool(batch)
                else:  # a token comes when one is idle
                    batch, wait_seconds = [], math.inf
            if batch or not self._inferring:
                for _ in range(tokens - len(batch)):  # they were for what is left: it must not sleep while this runs
                    self._utterance_tokens.put(None)
                return batch
            if math.isinf(wait_seconds):
                tokens = 0

    def _infer(self, batch: list[Utterance]) -> None:
        taken = time.perf_counter()
        emissions = batch[0].engine.infer(features.pad([item.frames for item in batch]))
        inferred = time.perf_counter()
        lengths = [item.frames.shape[1] for item in batch]
        self._observe(len(batch), sum(lengths), batch[0].engine.rule.cost(lengths))
        speed = sum(lengths) / (inferred - taken)
        self._speed = speed if math.isinf(self._speed) else _SPEED_MEMORY * self._speed + (1 - _SPEED_MEMORY) * speed
        for item, emission in zip(batch, emissions, strict=True):
            finish = partial(_finished, item, emission, taken, inferred, len(batch))
            if len(batch) == 1:
                self._run(item.future, finish)
            else:  # the device would stand still while the rows of a batch are searched one by one
                self._push(Task(item.caller, 0.0, item.future, finish))

    @staticmethod
    def _run(future: "asyncio.Future[Any]", work: Callable[[], Any]) -> None:
        try:
            result, error = work(), None
        except Exception as raised:  # noqa: BLE001  (whoever waits gets it)
            result, error = None, raised
        if result is not _LATER:
            _tell(future, error, result)


def _started(loop: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    return thread


def _end(threads: list[threading.Thread], tokens: "SimpleQueue[None]") -> None:
    """Let the threads go, each with a token of its own, which it finds after those of the work that waits."""
    for _ in threads:
        tokens.put(None)
    for thread in threads:
        thread.join()


def _nothing() -> None:
    """The work of a task that is done with."""


def _finished(item: Utterance, emission: Emission, taken: float, inferred: float, rows: int) -> Done[Any]:
    value = item.finish(emission)
    return Done(value, item.queued_seconds, taken, inferred, time.perf_counter(), rows)


def _as_failure(error: Exception) -> InferenceFailed:
    if isinstance(error, InferenceFailed):
        return error
    logger.error("the engine failed", exc_info=error)
    return InferenceFailed()


def _tell(future: "asyncio.Future[Any]", error: Exception | None, result: object) -> None:
    """Hand a thread's result to the event loop that waits for it."""
    try:
        future.get_loop().call_soon_threadsafe(_settle, future, error, result)
    except RuntimeError:  # the loop is closed: nobody waits
        logger.debug("a result came after the event loop had ended")


def _settle(future: "asyncio.Future[Any]", error: Exception | None, result: object) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
