"""Who is next: work that waits for a thread, in a fair order, in batches where an engine likes them."""

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from predictor.engine import Emission, Engine

_LOOK_AHEAD = 4  # a batch is filled from the next so many times its rows; further down the order, fairness ends
_TIDY = 64  # entries, besides twice the live ones, that may be left from those who went away


@dataclass(eq=False, slots=True)
class Task:
    """Something to run in a thread, for a caller, at a cost in any unit that the queue's tasks share.

    Once its future is done (cancelled: nobody waits for it any more), it is dropped instead of run.
    """

    caller: str
    cost: float
    future: "asyncio.Future[Any]"
    work: Callable[[], Any]


@dataclass(eq=False, slots=True)
class Utterance:
    """Features float32 [mel, T] for an engine; `finish` makes a result of their emission."""

    caller: str
    cost: float
    future: "asyncio.Future[Any]"
    engine: Engine
    frames: NDArray[np.float32]
    finish: Callable[[Emission], Any]
    queued_seconds: float = field(default_factory=time.perf_counter)


Q = TypeVar("Q", Task, Utterance)
_Entry = tuple[float, int, Q]


class FairQueue(Generic[Q]):
    """Start-time fair queueing (Goyal, Vin and Cheng 1996): callers with work waiting are served equal costs, however
    much each of them queues, and one caller's own work in its order. Being idle earns no credit.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry[Q]] = []
        self._numbers = itertools.count()
        self._served: dict[str, float] = {}  # the virtual time at which all that a caller has queued will be served
        self._virtual = 0.0
        self._tidy_at = _TIDY
        self.cost = 0.0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: Q) -> None:
        if max(len(self._heap), len(self._served)) >= self._tidy_at:
            self._tidy()
        start = max(self._virtual, self._served.get(item.caller, 0.0))
        self._served[item.caller] = start + item.cost
        heapq.heappush(self._heap, (start, next(self._numbers), item))
        self.cost += item.cost

    def pop(self) -> Q | None:
        """The next that somebody still waits for."""
        head = self._head()
        if head is not None:
            self._take_out([head])
        return head[2] if head else None

    def _head(self) -> _Entry[Q] | None:
        """The next that somebody still waits for, where it is."""
        if self._heap and self._heap[0][2].future.done():
            self._tidy()
        return self._heap[0] if self._heap else None

    def _take_out(self, entries: Sequence[_Entry[Q]]) -> None:
        """Entries of which the first is the head: it is that one's turn, the others go along."""
        self._virtual, *_ = heapq.heappop(self._heap)
        if len(entries) > 1:
            numbers = {number for _, number, _ in entries}
            self._heap = [entry for entry in self._heap if entry[1] not in numbers]
            heapq.heapify(self._heap)
        self.cost -= sum(item.cost for *_, item in entries)
        if not self._heap:  # nobody has to wait, and so nobody is owed anything
            self._served.clear()
            self.cost = 0.0

    def _tidy(self) -> None:
        """Drop what nobody waits for any more, at no cost to its caller: what comes after it moves up.

        Of callers with nothing queued, too many are forgotten: that is one item of credit at the most.
        """
        live: list[_Entry[Q]] = []
        gone: dict[str, float] = {}
        for start, number, item in sorted(self._heap):
            if item.future.done():
                gone[item.caller] = gone.get(item.caller, 0.0) + item.cost
            else:
                live.append((start - gone.get(item.caller, 0.0), number, item))
        self.dropped += len(self._heap) - len(live)
        self.cost = sum(item.cost for *_, item in live)
        callers = {item.caller for *_, item in live}
        keep_all = live and len(self._served) < self._tidy_at
        self._served = {c: at - gone.get(c, 0.0) for c, at in self._served.items() if keep_all or c in callers}
        self._tidy_at = 2 * len(live) + _TIDY
        self._heap = live
        heapq.heapify(self._heap)


class BatchQueue(FairQueue[Utterance]):
    """Utterances, taken in batches as the rule of their engine says. `clock` gives the seconds of `queued_seconds`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._clock = clock

    def take(self, *, patient: bool = True) -> tuple[list[Utterance], float]:
        """The next batch; or none, and the seconds until one that waits for company will go as it is.

        Infinity where nothing waits. With `patient` off, nothing waits for company.
        """
        head = self._head()
        if head is None:
            return [], math.inf
        first, rule = head[2], head[2].engine.rule
        company = self._company(first) if rule.max_rows > 1 else []
        lengths = [item.frames.shape[1] for item in (first, *(item for *_, item in company))]
        waited = self._clock() - first.queued_seconds
        if patient and waited < rule.wait_seconds and rule.fits([*lengths, max(lengths)]):
            return [], rule.wait_seconds - waited
        self._take_out([head, *company])
        return [first, *(item for *_, item in company)], 0.0

    def _company(self, first: Utterance) -> list[_Entry[Utterance]]:
        """Entries that share a call with the first: the next in order, of its engine, of about its length."""
        rule, company, lengths = first.engine.rule, [], [first.frames.shape[1]]
        for entry in heapq.nsmallest(_LOOK_AHEAD * rule.max_rows, self._heap):
            item = entry[2]
            length = item.frames.shape[1]
            free = item is not first and item.engine is first.engine and not item.future.done()
            if free and rule.fits([*lengths, length]):
                company.append(entry)
                lengths.append(length)
        return company
