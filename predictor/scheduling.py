"""Concurrent requests to engine calls: two pools and a bound.

Decoding and inference have their own threads, so that neither waits for the other, and the event loop has none of
their work. A request that cannot be started soon is refused at once: a queue that only grows helps nobody.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from predictor.errors import Overloaded

RETRY_AFTER_SECONDS = 1

T = TypeVar("T")


class Scheduler:
    """The threads of one serving process. Belongs to one event loop."""

    def __init__(self, engine_threads: int, decode_threads: int, max_pending_requests: int) -> None:
        self._engine = ThreadPoolExecutor(engine_threads, "engine")
        self._decode = ThreadPoolExecutor(decode_threads, "decode")
        self._limit = max_pending_requests
        self.pending = 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the places for requests; raises Overloaded where none is free."""
        if self.pending >= self._limit:
            raise Overloaded(self.pending, self._limit, RETRY_AFTER_SECONDS)
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def decode(self, work: Callable[..., T], *args: object) -> T:
        """Run work that reads and prepares audio."""
        return await asyncio.get_running_loop().run_in_executor(self._decode, work, *args)

    async def infer(self, work: Callable[..., T], *args: object) -> T:
        """Run work that keeps a core busy with the network; first come, first served."""
        return await asyncio.get_running_loop().run_in_executor(self._engine, work, *args)

    def stop(self) -> None:
        """Let the threads go; work that has begun is finished."""
        self._decode.shutdown(wait=False, cancel_futures=True)
        self._engine.shutdown(wait=False, cancel_futures=True)
