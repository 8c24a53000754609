"""predictor.scheduling.queue: nobody is forgotten, nobody is served twice, and nobody waits for a flood to pass."""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import bundle
from predictor.engine import BatchRule
from predictor.engine.onnx import OnnxEngine
from predictor.scheduling.queue import BatchQueue, FairQueue, Task, Utterance
from predictor.settings import EMBEDDED_BUNDLE

FEW = settings(deadline=None, max_examples=80)


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def engines():
    """Two that are alike, and not the same."""
    model = bundle.read(EMBEDDED_BUNDLE)
    return [OnnxEngine(model), OnnxEngine(model)]


def _task(loop, caller="a", cost=1.0):
    return Task(caller, cost, loop.create_future(), lambda: None)


def _drained(queue):
    return list(iter(queue.pop, None))


@dataclass
class Service:
    """A queue with a record of what it did: who waited, and by how much A was served more than B, in runs of time over
    which both of them had something waiting."""

    loop: asyncio.AbstractEventLoop
    queue: FairQueue = field(default_factory=FairQueue)
    pushed: list = field(default_factory=list)
    popped: list = field(default_factory=list)
    ahead: float = 0.0
    runs: list = field(default_factory=lambda: [[]])

    def push(self, caller, cost):
        self.pushed.append(_task(self.loop, caller, cost))
        self.queue.push(self.pushed[-1])
        self._record()

    def pop(self):
        item = self.queue.pop()
        if item is not None:
            self.popped.append(item)
            self.ahead += {"a": item.cost, "b": -item.cost}.get(item.caller, 0)
        self._record()

    def cancel(self, which):
        if which < len(self.pushed) and self.pushed[which] not in self.popped:
            self.pushed[which].future.cancel()
        self._record()

    def _record(self):
        waiting = Counter(t.caller for t in self.pushed if not t.future.done())
        waiting -= Counter(t.caller for t in self.popped)
        if waiting["a"] and waiting["b"]:
            self.runs[-1].append(self.ahead)
        else:
            self.runs.append([])


callers = st.sampled_from(["a", "b", "c", "d"])
costs = st.integers(0, 50)
pushes = st.tuples(st.just("push"), callers, costs)
pops = st.just(("pop",))
cancels = st.tuples(st.just("cancel"), st.integers(0, 50))


@FEW
@given(steps=st.lists(st.one_of(pushes, pushes, pops, cancels), max_size=80))
def test_whoever_is_waited_for_comes_out_once_and_a_callers_own_in_order(loop, steps):
    service = Service(loop)
    for kind, *facts in steps:
        getattr(service, kind)(*facts)
    cancelled = [t for t in service.pushed if t.future.done()]
    out = service.popped + _drained(service.queue)
    assert Counter(map(id, out)) == Counter(id(t) for t in service.pushed if t not in cancelled)
    for caller in "abcd":
        mine = [t for t in out if t.caller == caller]
        assert mine == [t for t in service.pushed if t in mine]
    assert (len(service.queue), service.queue.cost) == (0, 0)
    assert service.queue.dropped == len(cancelled)


@FEW
@given(steps=st.lists(st.one_of(pushes, pushes, pops, cancels), max_size=120))
def test_over_any_backlog_two_callers_are_served_equal_costs_within_one_item_of_each(loop, steps):
    service = Service(loop)
    for kind, *facts in steps:
        getattr(service, kind)(*facts)
    while len(service.queue):
        service.pop()
    largest = sum(max((t.cost for t in service.pushed if t.caller == caller), default=0) for caller in "ab")
    for run in service.runs:
        assert max(run, default=0) - min(run, default=0) <= largest


def test_a_flood_delays_another_caller_by_one_item_and_not_by_the_flood(loop):
    queue = FairQueue()
    for _ in range(1_000):
        queue.push(_task(loop, "flood", 5))
    queue.pop()
    queue.push(_task(loop, "quiet", 5))
    assert "quiet" in [queue.pop().caller for _ in range(2)]


def test_being_idle_earns_no_credit(loop):
    queue = FairQueue()
    for _ in range(101):
        queue.push(_task(loop, "busy"))
    for _ in range(100):
        queue.pop()
    for _ in range(50):
        queue.push(_task(loop, "idle"))
        queue.push(_task(loop, "busy"))
    first = Counter(queue.pop().caller for _ in range(20))
    assert abs(first["idle"] - first["busy"]) <= 2


def test_being_served_while_nobody_else_waits_is_no_debt(loop):
    queue = FairQueue()
    for _ in range(100):
        queue.push(_task(loop, "busy", 50))
        queue.pop()
    for _ in range(4):
        queue.push(_task(loop, "new", 50))
        queue.push(_task(loop, "busy", 50))
    assert Counter(queue.pop().caller for _ in range(4)) == {"new": 2, "busy": 2}


def test_what_was_not_done_does_not_count_against_its_caller(loop):
    queue = FairQueue()
    queue.push(_task(loop, "b"))
    for _ in range(40):
        left = _task(loop, "a")
        queue.push(left)
        left.future.cancel()
    for _ in range(40):
        queue.push(_task(loop, "a"))
        queue.push(_task(loop, "b"))
    first = Counter(queue.pop().caller for _ in range(20))
    assert abs(first["a"] - first["b"]) <= 2


@pytest.mark.parametrize("waiting", [0, 1, 20])
def test_callers_who_are_gone_are_forgotten(loop, waiting):
    queue = FairQueue()
    for number in range(waiting):
        queue.push(_task(loop, f"waiting-{number}"))
    for number in range(2_000):
        queue.push(_task(loop, f"passing-{number}"))
        queue.pop()
        assert len(queue._served) <= 2 * len(queue) + 66
    assert len(queue) == waiting
    assert len(_drained(queue)) == waiting


def test_what_nobody_waits_for_is_let_go_before_its_turn(loop):
    queue = FairQueue()
    queue.push(_task(loop, "patient"))
    for _ in range(2_000):
        gone = _task(loop, "gone", 1_000)
        queue.push(gone)
        gone.future.cancel()
        assert len(queue) <= 2 * 2 + 66
    assert queue.cost <= 1_000 * len(queue)
    assert [item.caller for item in _drained(queue)] == ["patient"]
    assert queue.dropped == 2_000
    assert queue.cost == 0


# Batches


def _utterance(loop, engine, length=100, caller="a", queued_seconds=0.0):
    frames = np.zeros((1, length), np.float32)
    return Utterance(caller, length, loop.create_future(), engine, frames, lambda emission: None, queued_seconds)


def _lengths(batch):
    return [item.frames.shape[1] for item in batch]


rules = st.builds(
    BatchRule,
    max_rows=st.integers(1, 6),
    max_padded_frames=st.integers(0, 2_000),
    max_padding_share=st.floats(0, 1),
    wait_seconds=st.floats(0, 1),
)
arrivals = st.tuples(st.integers(0, 1), st.integers(1, 600), callers, st.sampled_from([False, False, False, True]))


@FEW
@given(both=st.tuples(rules, rules), arrived=st.lists(arrivals, max_size=40), patient=st.booleans())
def test_every_batch_keeps_its_engines_rule_and_every_row_comes_out_once(loop, engines, both, arrived, patient):
    now = 0.0
    queue = BatchQueue(lambda: now)
    for engine, rule in zip(engines, both, strict=True):
        engine.rule = rule
    made = [_utterance(loop, engines[which], length, caller) for which, length, caller, _ in arrived]
    for item in made:
        queue.push(item)
    for item, (*_, cancelled) in zip(made, arrived, strict=True):
        if cancelled:
            item.future.cancel()
    out = []
    while queue:
        batch, wait_seconds = queue.take(patient=patient)
        if not batch:
            assert wait_seconds == math.inf if not queue else patient and 0 < wait_seconds <= 1
            now += wait_seconds
            continue
        out += batch
        rule, lengths = batch[0].engine.rule, _lengths(batch)
        assert {id(item.engine) for item in batch} == {id(batch[0].engine)}
        assert len(batch) <= rule.max_rows
        if len(batch) > 1:
            padded = len(batch) * max(lengths)
            assert padded <= rule.max_padded_frames
            assert padded - sum(lengths) <= rule.max_padding_share * padded
        if patient and now < rule.wait_seconds:  # it did not wait, so nothing like it could have joined
            assert not rule.fits([*lengths, max(lengths)])
    assert Counter(map(id, out)) == Counter(id(item) for item in made if not item.future.done())
    assert queue.cost == 0


def test_a_cpus_rule_takes_one_at_once(loop, engines):
    engines[0].rule = BatchRule(streams=8)
    queue = BatchQueue(lambda: 0.0)
    items = [_utterance(loop, engines[0]) for _ in range(3)]
    for item in items:
        queue.push(item)
    assert [queue.take() for _ in range(4)] == [*(([item], 0.0) for item in items), ([], math.inf)]


@pytest.fixture
def waiting(loop, engines):
    """A queue for batches of up to 3 rows and 600 frames that wait up to 2 s, its clock, and how to push."""

    class Waiting:
        now = 0.0

        def __init__(self):
            engines[0].rule = BatchRule(1, 3, 600, 0.25, 2.0)
            self.queue = BatchQueue(lambda: self.now)

        def push(self, length=100, caller="a"):
            item = _utterance(loop, engines[0], length, caller, self.now)
            self.queue.push(item)
            return item

    return Waiting()


def test_a_row_waits_for_company_as_long_as_the_rule_says(waiting):
    item = waiting.push()
    for waiting.now in (0.0, 0.5, 1.75):
        assert waiting.queue.take() == ([], 2.0 - waiting.now)
        assert (len(waiting.queue), waiting.queue.cost) == (1, 100)
    waiting.now = 2.0
    assert waiting.queue.take() == ([item], 0.0)
    assert (len(waiting.queue), waiting.queue.cost) == (0, 0)


def test_a_batch_goes_at_once_when_its_rows_are_full(waiting):
    first = waiting.push()
    assert waiting.queue.take()[0] == []
    waiting.now = 0.5
    others = [waiting.push(), waiting.push()]
    assert waiting.queue.take() == ([first, *others], 0.0)


def test_a_batch_goes_at_once_when_its_frames_are_full(waiting):
    first = waiting.push(290)
    assert waiting.queue.take()[0] == []
    second = waiting.push(300)  # a third of the longest makes 900 frames, of 600
    assert waiting.queue.take() == ([first, second], 0.0)


def test_who_fits_into_no_batch_waits_for_nobody(waiting):
    long = waiting.push(3_000)
    assert waiting.queue.take() == ([long], 0.0)


def test_without_patience_nobody_waits_for_company(waiting):
    items = [waiting.push(), waiting.push()]
    assert waiting.queue.take(patient=False) == (items, 0.0)


def test_rows_of_about_one_length_go_together_and_the_others_go_next(waiting):
    short, long, shorter, longer = (waiting.push(length) for length in (100, 290, 90, 300))
    waiting.now = 2.0
    assert waiting.queue.take() == ([short, shorter], 0.0)
    newcomer = waiting.push(300)
    assert waiting.queue.take() == ([long, longer], 0.0)
    assert waiting.queue.take(patient=False) == ([newcomer], 0.0)


def test_several_that_wait_for_company_of_different_lengths_wait_side_by_side(waiting):
    waiting.push(100)
    waiting.push(290, "b")
    waiting.push(10, "c")
    for _ in range(3):
        assert waiting.queue.take()[0] == []
    assert (len(waiting.queue), waiting.queue.cost) == (3, 400)
    assert sorted(length for _ in range(3) for length in _lengths(waiting.queue.take(patient=False)[0])) == [
        10,
        100,
        290,
    ]


def test_who_went_away_is_no_company(waiting):
    items = [waiting.push() for _ in range(3)]
    items[1].future.cancel()
    assert waiting.queue.take()[0] == []
    fourth = waiting.push()
    assert waiting.queue.take() == ([items[0], items[2], fourth], 0.0)
    assert waiting.queue.take() == ([], math.inf)
    assert waiting.queue.dropped == 1


def test_a_batch_is_filled_with_the_rows_of_every_caller(waiting):
    flood = [waiting.push(caller="flood") for _ in range(9)]
    quiet = waiting.push(caller="quiet")
    batch, _ = waiting.queue.take()
    assert flood[0] in batch
    assert quiet in batch
