"""Who may call, and how much audio each may send: the keys that are valid now, and a meter of audio seconds."""

import hmac
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from predictor import keys
from predictor.errors import RateLimited, Unauthenticated
from predictor.keys import InvalidKeys, Key

__all__ = ["InvalidKeys", "Key", "Keyring", "Meter"]

LOOK_SECONDS = 1.0  # how long a revoked key may live on
MAX_BUCKETS = 1 << 14  # more than the keys of one file
_ROUNDING_SECONDS = 0.001

logger = logging.getLogger("vani")


class Keyring:
    """The keys that are valid now. Belongs to one event loop; a look at the file is a `stat` and takes microseconds.

    The file is looked at again at most every LOOK_SECONDS, so that a key is added or revoked without a restart. A file
    that cannot be used, because it is gone, half written or mistyped, changes nothing: the keys of before stay valid
    and an error is logged, once. A slip in one line shall not lock every caller out; the price is that a revocation in
    the same file waits until the slip is mended. A file with no key left is believed at the second look that finds it
    so, because a file that is being written is empty for a moment too.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidKeys where the file cannot be used or holds no key."""
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)
        self._settled = False
        self._problem = ""
        self._keys = keys.read(path)
        if not self._keys:
            raise InvalidKeys("it holds no key")
        self._look_at = clock() + LOOK_SECONDS

    def find(self, secret: str) -> Key:
        """The key that the caller sent; raises Unauthenticated. Takes as long whichever key it is, or none."""
        self._look()
        digest = keys.digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthenticated(given=bool(secret))
        return found

    def _look(self) -> None:
        """Read the file where its stamp is new, and once more at the next look: the clock of a file system is so
        coarse that two changes in a row may bear one stamp."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        stamp = _stamp(self._path)
        again, self._stamp = stamp == self._stamp, stamp
        if again and self._settled:
            return
        self._settled = again
        try:
            found = keys.read(self._path)
        except InvalidKeys as error:
            if str(error) != self._problem:
                sentence = "the file of API keys cannot be used, and the keys of before stay valid: %s"
                logger.error(sentence, error)  # noqa: TRY400  (an operator's slip needs no traceback)
            self._problem, self._settled = str(error), False
            return
        if found or again:
            self._take(found)

    def _take(self, found: tuple[Key, ...]) -> None:
        before, after = set(self._keys), set(found)
        if before != after or self._problem:
            level = logging.INFO if found else logging.WARNING
            new, gone = _names(after - before), _names(before - after)
            logger.log(level, "%d API keys are valid; new: %s; gone: %s", len(found), new, gone)
        self._keys, self._problem = found, ""


def _names(found: set[Key]) -> str:
    return ", ".join(sorted(key.name for key in found)) or "none"


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file's content or, where a link is swapped as Kubernetes does it, with the file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class Meter:
    """Audio seconds that each key still may send. Belongs to one event loop.

    A bucket holds one minute's worth and fills up continuously. A request is let in while anything is left and then
    takes its whole length, into debt if need be: how long a recording is, is known only once it is decoded, and one
    that is longer than a minute's worth could never pass otherwise. So any minute lets through two minutes' worth and
    one request at most; requests that are let in before the first of them is charged come on top.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when it was

    def check(self, key: Key) -> None:
        """Raises RateLimited, with the whole seconds until the key is out of debt, where nothing is left."""
        limit = key.audio_seconds_per_minute
        if limit is not None and (left := self._left(key.name, limit)) <= 0:
            raise RateLimited(limit, math.floor(-left * 60 / limit + _ROUNDING_SECONDS) + 1)

    def charge(self, key: Key, seconds: float) -> None:
        """Take `seconds` of audio from the key's bucket. Of too many buckets, the one unused for longest is dropped."""
        limit = key.audio_seconds_per_minute
        if limit is None:
            return
        self._buckets[key.name] = (self._left(key.name, limit) - seconds, self._clock())
        self._buckets.move_to_end(key.name)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)

    def _left(self, name: str, limit: float) -> float:
        if name not in self._buckets:
            return limit
        left, since = self._buckets[name]
        return min(limit, left + (self._clock() - since) * limit / 60)
