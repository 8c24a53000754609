"""predictor.scheduling: two pools that do not wait for each other, and a bound on what waits."""

import asyncio
import threading
import time
from queue import SimpleQueue

import pytest

from predictor.errors import Overloaded
from predictor.scheduling import RETRY_AFTER_SECONDS, Scheduler

PATIENCE_SECONDS = 10.0


@pytest.fixture
def scheduler():
    made = Scheduler(engine_threads=2, decode_threads=1, max_pending_requests=3)
    yield made
    made.stop()


@pytest.fixture
def gate():
    """What blocked work waits for; opened at the end, so that no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


def _wait(gate):
    assert gate.wait(PATIENCE_SECONDS)
    return threading.current_thread().name


def _begin(started, index, gate):
    started.put(index)
    _wait(gate)
    return index


async def _next(started, count):
    """The first `count` things that threads have put into a queue, waiting for them."""
    return [await asyncio.to_thread(started.get, timeout=PATIENCE_SECONDS) for _ in range(count)]


def test_requests_up_to_the_limit_are_admitted_and_the_next_is_told_the_facts(scheduler):
    with scheduler.admit(), scheduler.admit(), scheduler.admit():
        assert scheduler.pending == 3
        with pytest.raises(Overloaded, match="3 requests are waiting and the limit is 3") as caught, scheduler.admit():
            pytest.fail("a fourth request was admitted")
        assert caught.value.retry_after_seconds == RETRY_AFTER_SECONDS > 0
        assert scheduler.pending == 3
    assert scheduler.pending == 0


def test_a_place_is_free_again_as_soon_as_its_request_ends(scheduler):
    with scheduler.admit(), scheduler.admit():
        for _ in range(5):
            with scheduler.admit():
                assert scheduler.pending == 3


def test_a_request_that_fails_gives_its_place_back(scheduler):
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), scheduler.admit():
            raise ZeroDivisionError
    assert scheduler.pending == 0


async def test_a_request_that_is_cancelled_gives_its_place_back(scheduler, gate):
    async def request():
        with scheduler.admit():
            await scheduler.infer(_wait, gate)

    task = asyncio.create_task(request())
    await asyncio.sleep(0.01)
    assert scheduler.pending == 1
    task.cancel()
    await asyncio.wait([task])
    assert scheduler.pending == 0


async def test_work_gets_its_arguments_and_its_result_or_error_comes_back(scheduler):
    for run in (scheduler.decode, scheduler.infer):
        assert await run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await run(divmod, 7, 0)
        assert await run(divmod, 7, 3) == (2, 1)


@pytest.mark.parametrize(("full", "other"), [("infer", "decode"), ("decode", "infer")])
async def test_a_full_pool_does_not_delay_the_other(scheduler, gate, full, other):
    waiting = [asyncio.create_task(getattr(scheduler, full)(_wait, gate)) for _ in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await getattr(scheduler, other)(threading.get_ident) != threading.get_ident()
    assert not any(task.done() for task in waiting)
    gate.set()
    assert {name.split("_")[0] for name in await asyncio.gather(*waiting)} == {
        "engine" if full == "infer" else "decode"
    }


async def test_a_pool_runs_as_much_at_once_as_it_has_threads(scheduler, gate):
    started = SimpleQueue()
    tasks = [asyncio.create_task(scheduler.infer(_begin, started, index, gate)) for index in range(6)]
    assert sorted(await _next(started, 2)) == [0, 1]
    await asyncio.sleep(0.02)
    assert started.empty()
    gate.set()
    assert await asyncio.gather(*tasks) == list(range(6))


async def test_a_pool_works_in_the_order_of_arrival(scheduler, gate):
    started = SimpleQueue()
    tasks = [asyncio.create_task(scheduler.decode(_begin, started, index, gate)) for index in range(6)]
    gate.set()
    await asyncio.gather(*tasks)
    assert await _next(started, 6) == list(range(6))


async def test_the_event_loop_goes_on_while_work_runs(scheduler, gate):
    task = asyncio.create_task(scheduler.infer(_wait, gate))
    begun = time.perf_counter()
    await asyncio.sleep(0.01)
    assert time.perf_counter() - begun < PATIENCE_SECONDS / 2
    assert not task.done()
    gate.set()
    await task


@pytest.mark.parametrize(("pool", "threads"), [("infer", 2), ("decode", 1)])
async def test_stopping_finishes_what_has_begun_and_drops_what_has_not(scheduler, gate, pool, threads):
    started = SimpleQueue()
    tasks = [asyncio.create_task(getattr(scheduler, pool)(_begin, started, index, gate)) for index in range(4)]
    begun = list(range(threads))
    assert sorted(await _next(started, threads)) == begun
    scheduler.stop()
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:threads] == begun
    assert all(isinstance(result, asyncio.CancelledError) for result in results[threads:])
    assert started.empty()
