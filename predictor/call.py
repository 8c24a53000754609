"""One request on its way through, and the door that it comes in by: the same for HTTP, WebSocket and gRPC.

A Call is made first and for everything, whatever becomes of it: it has the request's id, its trace and what its log
line will say. Then the door is asked to let it in: the key, the caller's rate, and a place.
"""

import logging
import math
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from predictor import telemetry, tracing
from predictor.access import Key, Keyring, Meter
from predictor.errors import BadRequest, DeadlineExceeded, Overloaded, RateLimited, Unauthenticated
from predictor.models import Model, Models
from predictor.scheduling import Budget
from predictor.tracing import Trace

REQUEST_ID_HEADER = "x-request-id"
DIGEST_HEADER = "x-vani-bundle-digest"
MODEL_HEADER = "x-vani-model"
VERSION_HEADER = "x-vani-version"
TIMEOUT_HEADER = "x-request-timeout"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)?")
_REASONS: dict[type[Exception], str] = {
    Unauthenticated: "key",
    RateLimited: "rate",
    DeadlineExceeded: "deadline",
}

logger = logging.getLogger("vani.requests")


@dataclass(slots=True, eq=False)
class Call:
    """`caller` is whose share of the server it uses: the name of its key, or where there are none, its address.

    `model` is what answers, once that is known; `facts` go into the log line: never text, audio or a secret.
    """

    id: str
    caller: str
    trace: Trace
    timeout_seconds: float
    model: Model | None
    key: Key | None = None
    language: str | None = None
    started: float = field(default_factory=time.perf_counter)
    facts: dict[str, str | float] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)  # what is given back when the call ends

    @property
    def remaining_seconds(self) -> float:
        return self.timeout_seconds - (time.perf_counter() - self.started)

    def identity(self) -> list[tuple[str, str]]:
        """What every response carries: the request's id, and which bytes answered."""
        pairs = [(REQUEST_ID_HEADER, self.id)]
        if self.model:
            pairs += [
                (DIGEST_HEADER, self.model.digest),
                (MODEL_HEADER, self.model.name),
                (VERSION_HEADER, self.model.version),
            ]
        return pairs


class Door:
    """Who comes in, and how many. Belongs to one event loop."""

    def __init__(
        self, models: Models, keyring: Keyring | None, max_requests: int, max_bytes: int, timeout_seconds: float
    ) -> None:
        self._models, self._keyring, self._timeout_seconds = models, keyring, timeout_seconds
        self.meter = Meter()
        self.requests = Budget("requests", max_requests)
        self.bytes = Budget("bytes", max_bytes)

    @property
    def needs_key(self) -> bool:
        return self._keyring is not None

    def open(self, header: Callable[[str], str | None], peer: str, name: str) -> Call:
        """A Call for whatever knocks. What a header says is used only if it is safe to write to a log."""
        given = _REQUEST_ID.fullmatch(header(REQUEST_ID_HEADER) or "")
        # Random, and not a secret: the operating system need not be asked for each.
        identity = given[0] if given else str(uuid.UUID(int=random.getrandbits(128), version=4))
        trace = tracing.begin(header, name)
        return Call(identity, peer, trace, self._timeout_seconds, self._models.only)

    def check(self, call: Call, header: Callable[[str], str | None]) -> None:
        """Whose call it is and how long it may take; raises Unauthenticated or BadRequest."""
        scheme, _, secret = (header("authorization") or "").partition(" ")
        self.authenticate(call, secret.strip() if scheme.lower() == "bearer" else header("x-api-key") or "")
        asked = header(TIMEOUT_HEADER)
        if asked is not None:
            call.timeout_seconds = min(call.timeout_seconds, _read_seconds(asked))

    def authenticate(self, call: Call, secret: str) -> None:
        """Raises Unauthenticated. Where no keys are set up, everybody may come in."""
        if self._keyring is None:
            return
        call.key = self._keyring.find(secret)
        call.caller = call.facts["key"] = call.key.name

    @contextmanager
    def admit(self, call: Call) -> Iterator[None]:
        """A place for a request that means work; raises RateLimited or Overloaded."""
        if call.key:
            self.meter.check(call.key)
        with self.requests.hold(call.caller, 1):
            telemetry.pending(round(self.requests.total))
            try:
                yield
            finally:
                telemetry.pending(round(self.requests.total) - 1)

    def close(self, call: Call, method: str, route: str, status: int, *, quiet: bool = False) -> None:
        """Give back what the call holds, count it, end its trace, and write its one log line."""
        call.held.close()
        seconds = time.perf_counter() - call.started
        telemetry.answered(method, route, status, call.language, seconds)
        if quiet:
            pass  # a span that is never ended is never sent: nobody looks for a probe's
        elif method == "GRPC":
            call.trace.end(status, rpc_system="grpc", rpc_method=route)
        else:
            call.trace.end(status, route=route)
        identity = {"request_id": call.id, "trace_id": call.trace.trace_id}
        if call.model:
            identity["bundle"] = call.model.digest[7:19]
        rest = " ".join(f"{name}={value}" for name, value in {**identity, **call.facts}.items())
        logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s status=%d ms=%.1f %s", method, route, status, seconds * 1000, rest,
        )  # fmt: skip


def refused(error: Exception) -> None:
    """Count why a call was not let in or not finished."""
    if isinstance(error, Overloaded):
        telemetry.refused(error.what if error.what in ("requests", "bytes") else "queue")
    elif reason := _REASONS.get(type(error)):
        telemetry.refused(reason)


def _read_seconds(text: str) -> float:
    """ "2.5", "2.5s" or "1500ms"."""
    match = _SECONDS.fullmatch(text.strip())
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else math.nan
    if not seconds > 0:
        raise BadRequest("X-Request-Timeout must be a number of seconds above 0, such as 2.5 or 1500ms")
    return seconds
