"""What a process may hold at once, shared fairly between callers."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from predictor.errors import Overloaded

_ROUNDING = 1e-6  # what sums of seconds may err by


class Budget:
    """An amount that may be held at once, in a unit that `what` names. May be used from any thread.

    Where it is used up, a caller is refused, unless it holds less than an equal share itself: whoever floods the server
    cannot shut the others out. What is held stays below twice the limit and one request; one request alone is never
    too large, or the longest recordings would never be heard.
    """

    def __init__(self, what: str, limit: float, retry_after: Callable[[], int] = lambda: 1) -> None:
        self._what, self._limit, self._retry_after = what, limit, retry_after
        self._held: dict[str, float] = {}
        self._lock = threading.Lock()
        self.total = 0.0

    def take(self, caller: str, amount: float, *, further: bool = False) -> None:
        """Hold `amount` for a caller until it is given back; raises Overloaded, but not for the `further` parts of a
        request that has been let in: it is let in whole."""
        with self._lock:
            share = self._limit / (len(self._held) + (caller not in self._held))
            own = self._held.get(caller, 0.0)
            if not further and self.total >= self._limit and (own >= share or self.total >= 2 * self._limit):
                raise Overloaded(self._what, round(self.total), self._limit, self._retry_after())
            self._held[caller] = own + amount
            self.total += amount

    def give(self, caller: str, amount: float) -> None:
        """Give back what was taken."""
        with self._lock:
            left = self._held.pop(caller, 0.0) - amount
            if left > _ROUNDING:
                self._held[caller] = left
            self.total = self.total - amount if self._held else 0.0

    def hold(self, caller: str, amount: float) -> "Held":
        """`take` now, `give` at the end of a with statement."""
        self.take(caller, amount)
        return Held(self, caller, amount)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What is given back at the end of a with statement. No generator, which would cost twice as much."""

    _budget: Budget
    _caller: str
    _amount: float

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._budget.give(self._caller, self._amount)


class Place:
    """What one request holds of a budget: taken piece by piece and in any thread, as it becomes known how much that is,
    and given back all at once when the request ends. `changed` is told of each.

    A request is let in with its first piece, and then whole. Once it has ended nothing is taken any more: a thread may
    still be at work for a request that nobody waits for.
    """

    def __init__(self, budget: Budget, caller: str, changed: Callable[[float], None]) -> None:
        self._budget, self._caller, self._changed = budget, caller, changed
        self._lock = threading.Lock()
        self._pieces: list[float] = []
        self._ended = False

    def take(self, amount: float) -> None:
        """Raises Overloaded."""
        with self._lock:
            if self._ended:
                return
            self._budget.take(self._caller, amount, further=bool(self._pieces))
            self._pieces.append(amount)
            self._changed(amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for amount in self._pieces:
                self._budget.give(self._caller, amount)
                self._changed(-amount)
