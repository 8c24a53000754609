"""predictor.scheduling: threads that take the next batch, whatever fails, whoever leaves, and however it is cut.

What runs is the real engine on real speech. It is held up by events, so nothing here depends on how fast it is.
"""

import asyncio
import gc
import logging
import random
import threading
import time
import weakref
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest

from demo import testset
from predictor import features
from predictor.engine import BatchRule
from predictor.errors import InferenceFailed, InvalidAudio, Overloaded
from predictor.recognizer import Recognizer
from predictor.scheduling import Follow, Scheduler
from predictor.settings import EMBEDDED_BUNDLE

PATIENCE_SECONDS = 20.0
FOR_EVER = 600.0  # as a batch's patience: a test that waited for it to end would fail
ROWS = partial(BatchRule, max_padded_frames=10_000, max_padding_share=1.0)


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture(scope="module")
def spoken(recognizer):
    """(window, features) of clips of both languages, of every length."""
    clips = list(testset.read())[::16]
    windows = [recognizer.split(recognizer.decode((testset.DIRECTORY / c.audio).read_bytes()))[0] for c in clips]
    return [(window, recognizer.extract(window)) for window in windows]


class Held:
    """The real engine behind a gate: `begun` has the lengths of each batch that came, `opened` lets all go on."""

    def __init__(self, engine, rule, *, is_open=True):
        self._engine, self.rule = engine, rule
        self.begun = SimpleQueue()
        self.batches = []
        self.opened = threading.Event()
        self.failures = []  # to raise, call by call
        if is_open:
            self.opened.set()

    def infer(self, batch):
        self.batches.append(batch.lengths.tolist())
        self.begun.put(batch.lengths.tolist())
        assert self.opened.wait(PATIENCE_SECONDS)
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        return self._engine.infer(batch)

    async def next(self):
        return await asyncio.to_thread(self.begun.get, timeout=PATIENCE_SECONDS)


@pytest.fixture
def scheduler():
    """Call it for a Scheduler; all are stopped in the end, once every gate is open."""
    made = []

    def make(streams=1, preparers=1, max_pending_seconds=60.0, **options):
        made.append(Scheduler(streams, preparers, max_pending_seconds, **options))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def engine(recognizer, scheduler):
    """Call it for an engine, with the gate open or not."""
    made = []

    def make(rule, *, is_open=True):
        made.append(Held(recognizer.engine, rule, is_open=is_open))
        return made[-1]

    yield make
    for held in made:
        held.opened.set()


def _frames(length, like=80):
    return np.zeros((like, length), np.float32)


def _shape(emission):
    return emission.log_probs.shape


def _alive(scheduler):
    return [thread.is_alive() for thread in (*scheduler._engine_threads, *scheduler._prepare_threads)]


async def _infer(scheduler, engine, length=100, caller="a", finish=_shape):
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await scheduler.infer(caller, engine, _frames(length), finish)


def _begin(*arguments, **options):
    return asyncio.create_task(_infer(*arguments, **options))


async def _settled():
    """Tasks that were created have begun to wait."""
    for _ in range(3):
        await asyncio.sleep(0)


# What runs where


async def test_work_gets_its_arguments_and_its_result_or_error_comes_back(scheduler):
    one = scheduler()
    assert await one.prepare("a", 1, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await one.prepare("a", 1, divmod, 7, 0)
    with pytest.raises(InvalidAudio):
        await one.prepare("a", 1, _refuse)
    assert await one.prepare("a", 1, threading.get_ident) != threading.get_ident()


def _refuse():
    raise InvalidAudio("it is empty")


async def test_an_utterance_comes_back_with_what_became_of_it_and_when(scheduler, engine):
    held = engine(BatchRule())
    before = time.perf_counter()
    done = await _infer(scheduler(), held, 200)
    assert done.rows == 1
    assert done.value[0] == pytest.approx(100, abs=2)
    stamps = (before, done.queued_seconds, done.taken_seconds, done.inferred_seconds, done.done_seconds)
    assert sorted(stamps) == list(stamps)
    assert done.done_seconds <= time.perf_counter()


async def test_preparing_goes_on_while_every_stream_is_busy(scheduler, engine):
    one, held = scheduler(), engine(BatchRule(), is_open=False)
    task = _begin(one, held)
    await held.next()
    assert await one.prepare("a", 1, threading.get_ident)
    assert not task.done()
    held.opened.set()
    assert (await task).rows == 1


async def test_inference_goes_on_while_every_preparer_is_busy(scheduler, engine):
    one, gate = scheduler(), threading.Event()
    task = asyncio.create_task(one.prepare("a", 1, gate.wait, PATIENCE_SECONDS))
    assert (await _infer(one, engine(BatchRule()))).rows == 1
    assert not task.done()
    gate.set()
    assert await task


async def test_as_many_calls_go_side_by_side_as_there_are_streams(scheduler, engine):
    one, held = scheduler(streams=3), engine(BatchRule(streams=3), is_open=False)
    tasks = [_begin(one, held) for _ in range(5)]
    for _ in range(3):
        await held.next()
    assert held.begun.empty()
    assert one.queued_frames == 200
    held.opened.set()
    await asyncio.gather(*tasks)
    assert one.queued_frames == 0


async def test_callers_are_served_in_turn(scheduler, engine):
    one, held = scheduler(), engine(BatchRule(), is_open=False)
    first = _begin(one, held, 50)
    await held.next()
    flood = [_begin(one, held, 100, "flood") for _ in range(10)]
    await _settled()
    quiet = _begin(one, held, 101, "quiet")
    await _settled()
    held.opened.set()
    await asyncio.gather(first, quiet, *flood)
    assert [101] in held.batches[1:4]


# Batches


async def test_a_batch_that_fills_up_wakes_a_thread_at_once(scheduler, engine):
    one, held = scheduler(), engine(ROWS(max_rows=3, wait_seconds=FOR_EVER))
    early = [_begin(one, held, length) for length in (100, 110)]
    await _settled()
    assert held.begun.empty()
    early.append(_begin(one, held, 120))
    assert await held.next() == [100, 110, 120]
    assert [done.rows for done in await asyncio.gather(*early)] == [3, 3, 3]


async def test_a_batch_whose_frames_are_full_goes_at_once_too(scheduler, engine):
    one, held = scheduler(), engine(ROWS(max_rows=8, max_padded_frames=250, wait_seconds=FOR_EVER))
    done = await asyncio.gather(_begin(one, held, 100), _begin(one, held, 100))
    assert [d.rows for d in done] == [2, 2]


async def test_a_batch_that_does_not_fill_up_goes_when_its_time_has_come(scheduler, engine):
    one, held = scheduler(), engine(ROWS(max_rows=3, wait_seconds=0.03))
    done = await _infer(one, held)
    assert done.rows == 1
    assert done.taken_seconds - done.queued_seconds >= 0.03


async def test_what_is_left_beside_a_batch_finds_another_thread(scheduler, engine):
    """The thread that was woken for the second is the one that leaves with the first: nobody else may sleep on."""
    one = scheduler(streams=2)
    blocked = engine(ROWS(max_rows=2, wait_seconds=0.05), is_open=False)
    other = engine(ROWS(max_rows=2, wait_seconds=0.05))
    first = _begin(one, blocked)
    await asyncio.sleep(0.005)
    second = _begin(one, other)
    await blocked.next()
    assert (await second).rows == 1
    assert not first.done()
    blocked.opened.set()
    await first


async def test_who_went_away_never_reaches_the_engine(scheduler, engine):
    one, held = scheduler(), engine(BatchRule(), is_open=False)
    tasks = [_begin(one, held, length) for length in (100, 101, 102)]
    await held.next()
    tasks[1].cancel()
    await _settled()
    held.opened.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert held.batches == [[100], [102]]
    assert (one.dropped, one.queued_frames) == (1, 0)


async def test_who_went_away_while_a_batch_waited_is_not_part_of_it(scheduler, engine):
    one, held = scheduler(), engine(ROWS(max_rows=3, wait_seconds=FOR_EVER))
    gone = [_begin(one, held, 100), _begin(one, held, 101)]
    await _settled()
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    done = await asyncio.gather(*(_begin(one, held, length) for length in (102, 103, 104)))
    assert [d.rows for d in done] == [3, 3, 3]
    assert held.batches == [[102, 103, 104]]


async def test_work_that_nobody_waits_for_is_not_done(scheduler):
    one, gate, ran = scheduler(), threading.Event(), []
    first = asyncio.create_task(one.prepare("a", 1, gate.wait, PATIENCE_SECONDS))
    second = asyncio.create_task(one.prepare("a", 1, ran.append, 2))
    third = asyncio.create_task(one.prepare("a", 1, ran.append, 3))
    await _settled()
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    await asyncio.gather(first, third)
    assert ran == [3]
    assert one.dropped == 1


async def test_the_body_of_who_went_away_is_let_go_at_once(scheduler):
    class Body:
        pass

    one, gate = scheduler(), threading.Event()
    first = asyncio.create_task(one.prepare("a", 1, gate.wait, PATIENCE_SECONDS))
    body = Body()
    held = weakref.ref(body)
    task = asyncio.create_task(one.prepare("a", 1, id, body))
    del body
    await _settled()
    assert held() is not None
    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()
    assert held() is None
    assert not first.done()
    gate.set()
    await first


async def test_whoever_watches_is_told_of_rows_frames_and_padding(scheduler, engine):
    told = []
    one = scheduler(observe=lambda *numbers: told.append(numbers))
    held = engine(ROWS(max_rows=2, wait_seconds=FOR_EVER))
    await asyncio.gather(_begin(one, held, 100), _begin(one, held, 140))
    await _infer(one, engine(BatchRule()), 70)
    assert told == [(2, 240, 280), (1, 70, 70)]


# Failures


@pytest.mark.parametrize("failure", [ValueError("secret"), MemoryError(), InferenceFailed()], ids=type)
async def test_an_engine_that_fails_fails_its_batch_alone_and_its_thread_lives_on(scheduler, engine, failure, caplog):
    one, held = scheduler(), engine(ROWS(max_rows=2, wait_seconds=FOR_EVER))
    held.failures = [failure]
    results = await asyncio.gather(*(_begin(one, held, 100) for _ in range(4)), return_exceptions=True)
    assert [type(r).__name__ for r in results] == ["InferenceFailed", "InferenceFailed", "Done", "Done"]
    assert not any("secret" in str(r) for r in results)
    logged = [record for record in caplog.records if record.getMessage() == "the engine failed"]
    assert len(logged) == (not isinstance(failure, InferenceFailed))
    assert all(_alive(one))


async def test_an_engine_that_answers_with_too_few_rows_fails_its_batch_alone(scheduler, engine):
    one, held = scheduler(), engine(ROWS(max_rows=2, wait_seconds=FOR_EVER))
    whole = held._engine.infer

    class Short:
        def infer(self, batch):
            return whole(batch)[:1]

    held._engine = Short()
    results = await asyncio.gather(*(_begin(one, held, 100) for _ in range(2)), return_exceptions=True)
    assert isinstance(results[1], InferenceFailed)
    assert all(_alive(one))


async def test_a_watcher_that_fails_does_not_end_the_thread(scheduler, engine):
    def observe(rows, frames, padded_frames):
        raise ZeroDivisionError

    one = scheduler(observe=observe)
    for _ in range(2):
        with pytest.raises(InferenceFailed):
            await _infer(one, engine(BatchRule()))
    assert all(_alive(one))


@pytest.mark.parametrize("rows", [1, 3])
async def test_a_search_that_fails_fails_its_own_utterance_alone(scheduler, engine, rows):
    one, held = scheduler(), engine(ROWS(max_rows=rows, wait_seconds=FOR_EVER))
    finishes = (_shape, lambda emission: emission.log_probs["none"], _shape)
    tasks = [_begin(one, held, 100, finish=finish) for finish in finishes]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r).__name__ for r in results] == ["Done", "IndexError", "Done"]
    assert all(_alive(one))


# The end


async def test_stopping_finishes_what_waits(scheduler, engine):
    one = scheduler(preparers=2)
    held, patient = engine(BatchRule(), is_open=False), engine(ROWS(max_rows=4, wait_seconds=FOR_EVER))
    tasks = [_begin(one, held, length) for length in (100, 101, 102)]
    await held.next()
    tasks += [_begin(one, patient, 100), _begin(one, patient, 100)]
    tasks += [asyncio.create_task(one.prepare("a", 1, divmod, 7, 2))]
    await _settled()
    stopping = asyncio.create_task(asyncio.to_thread(one.stop))
    held.opened.set()
    results = await asyncio.gather(*tasks)
    assert [d.rows for d in results[:-1]] == [1, 1, 1, 2, 2]
    await stopping
    assert not any(_alive(one))


def test_a_result_that_comes_after_the_loop_has_ended_is_dropped(engine, caplog):
    caplog.set_level(logging.DEBUG, "vani")
    one, held = Scheduler(1, 1, 60.0), engine(BatchRule(), is_open=False)

    async def leave_early():
        _begin(one, held)
        await held.next()

    asyncio.run(leave_early())
    held.opened.set()
    one.stop()
    assert not any(_alive(one))
    assert [r.getMessage() for r in caplog.records] == ["a result came after the event loop had ended"]


# When to come again


async def test_the_advice_when_to_come_again_grows_with_what_waits(scheduler, engine):
    one = scheduler(max_pending_seconds=0.001)
    assert one._retry_after() == 1
    await _infer(one, engine(BatchRule()), 500)
    advice = []
    for seconds in (0.01, 100, 1_000, 10_000, 1e5, 1e9):
        with one.audio.hold("a", seconds), pytest.raises(Overloaded) as caught:
            one.audio.take("a", 1)
        advice.append(caught.value.retry_after_seconds)
    assert advice == sorted(advice)
    assert (advice[0], advice[-1]) == (1, 30)
    assert len(set(advice)) > 2


# Transcripts


async def _recognized(scheduler, recognizer, engine, spoken):
    """What each window says, all of them at once."""

    async def one(number, window, frames):
        search = partial(_search, recognizer, window)
        return await scheduler.infer(f"caller-{number % 5}", engine, frames, search)

    async with asyncio.timeout(60):
        return await asyncio.gather(*(one(n, window, frames) for n, (window, frames) in enumerate(spoken)))


def _search(recognizer, window, emission):
    return recognizer.search(emission, window, None)


@pytest.fixture(scope="module")
def alone(recognizer, spoken):
    """What each window says by itself."""
    return [recognizer.recognize(window, None) for window, _ in spoken]


@pytest.mark.parametrize(
    ("rule", "seed"),
    [
        pytest.param(BatchRule(), None, id="one by one"),
        pytest.param(BatchRule(2, 4, 2_000, 0.1, 0.02), 3, id="4 alike, shuffled"),
        pytest.param(BatchRule(2, 16, 16_000, 0.5, 0.02), None, id="16"),
        pytest.param(BatchRule(1, 64, 1_000_000, 1.0, 0.05), 5, id="64 of any length, shuffled"),
    ],
)
async def test_a_transcript_is_the_same_whatever_the_batch(  # noqa: PLR0917  (fixtures)
    scheduler, engine, recognizer, spoken, alone, rule, seed
):
    held, one = engine(rule), scheduler(streams=rule.streams, preparers=2)
    order = list(range(len(spoken)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    done = await _recognized(one, recognizer, held, [spoken[n] for n in order])
    assert [d.value for d in done] == [alone[n] for n in order]
    assert max(map(len, held.batches)) == max(d.rows for d in done)
    assert (max(d.rows for d in done) > 1) == (rule.max_rows > 1)
    assert sum(bool(words) for words, _ in alone) > len(alone) * 0.9


def test_emissions_do_not_depend_on_the_rows_beside_them(recognizer, spoken):
    few = [frames for _, frames in spoken[:6]]
    together = recognizer.engine.infer(features.pad(few))
    for emission, frames in zip(together, few, strict=True):
        (by_itself,) = recognizer.engine.infer(features.pad([frames]))
        np.testing.assert_array_equal(emission.log_probs, by_itself.log_probs)


# Work that goes on to the engine without a way back to the event loop


def _name(_emission):
    return threading.current_thread().name


def _follow(engine, length=100, finish=_name):
    return lambda: Follow(engine, _frames(length), finish)


async def _prepare_and_infer(scheduler, engine, **options):
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await scheduler.prepare_and_infer("a", 1, _follow(engine, **options))


async def test_what_was_prepared_is_inferred_by_the_same_thread_where_the_engine_is_idle(scheduler, engine):
    done = await _prepare_and_infer(scheduler(), engine(BatchRule()))
    assert done.value.startswith("prepare")
    assert done.queued_seconds <= done.taken_seconds <= done.inferred_seconds <= done.done_seconds


async def test_it_queues_behind_others_where_the_engine_is_busy_and_never_adds_a_stream(scheduler, engine):
    one, held = scheduler(streams=2, preparers=4), engine(BatchRule(streams=2), is_open=False)
    waiting = [asyncio.create_task(_prepare_and_infer(one, held)) for _ in range(3)]
    waiting += [asyncio.create_task(_infer(one, held, finish=_name)) for _ in range(3)]
    for _ in range(2):
        await held.next()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while one.queued_frames < 400:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert held.begun.empty()
    held.opened.set()
    names = [(await task).value for task in waiting]
    assert len(names) == 6
    assert sum(name.startswith("prepare") for name in names) <= 2


async def test_a_batching_engine_gets_it_through_its_queue(scheduler, engine):
    rule = ROWS(max_rows=2, wait_seconds=FOR_EVER)
    one, held = scheduler(preparers=2), engine(rule)
    both = await asyncio.gather(*(_prepare_and_infer(one, held) for _ in range(2)))
    assert [done.rows for done in both] == [2, 2]


async def test_an_engine_that_fails_in_a_preparing_thread_leaves_it_and_its_stream(scheduler, engine):
    one, held = scheduler(), engine(BatchRule())
    held.failures = [RuntimeError("out of memory")]
    with pytest.raises(InferenceFailed):
        await _prepare_and_infer(one, held)
    assert (await _prepare_and_infer(one, held)).value.startswith("prepare")
    assert (await _infer(one, held, finish=_name)).value.startswith("engine")
    assert all(_alive(one))


async def test_work_that_needs_no_engine_returns_what_it_is(scheduler):
    assert await scheduler().prepare_and_infer("a", 1, lambda: "several windows") == "several windows"
    with pytest.raises(InvalidAudio):
        await scheduler().prepare_and_infer("a", 1, _refuse)


def _refuse():
    raise InvalidAudio("it is empty")


async def test_who_left_while_it_was_prepared_never_reaches_the_engine(scheduler, engine):
    one, held = scheduler(), engine(BatchRule())
    begun, opened = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert opened.wait(PATIENCE_SECONDS)
        return Follow(held, _frames(100), _name)

    task = asyncio.create_task(one.prepare_and_infer("a", 1, work))
    assert await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
    task.cancel()
    await asyncio.wait([task])
    opened.set()
    await asyncio.to_thread(one.stop)
    assert held.batches == []


async def test_stop_finishes_what_queued_while_a_preparing_thread_held_the_stream(scheduler, engine):
    one, held = scheduler(), engine(BatchRule(), is_open=False)
    first = asyncio.create_task(_prepare_and_infer(one, held))
    await held.next()
    rest = [asyncio.create_task(_infer(one, held)) for _ in range(3)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(asyncio.to_thread(one.stop))
    held.opened.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(first, *rest, stopping)
