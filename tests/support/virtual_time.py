"""An event loop for what waits: its clock jumps to the next timer as soon as nothing else is to be done.

An hour of sleeping takes no time and ends in the same order on a slow machine as on a fast one. What threads and
sockets do still takes real time, of which this clock knows nothing: timers would not wait for it. Tests that need both
take the real loop.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE_SECONDS = 10.0  # of real time, for threads and sockets when no timer is left


class _Jump(selectors.DefaultSelector):
    """A selector that moves its loop's clock where another would sleep."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(_PATIENCE_SECONDS if timeout is None else 0)
        if not ready and timeout is None:
            raise RuntimeError("nothing is scheduled, and nothing came from outside: a test waits for ever")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0. Durations as tests measure them are exact but for rounding of floats."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async test one that pytest runs like any other, in a loop of its own."""

    @wraps(test)
    def in_a_loop_of_its_own(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(test(*args, **kwargs))

    return in_a_loop_of_its_own
