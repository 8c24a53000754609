"""The edge of the server: what holds for every request, whichever route answers it.

An ASGI middleware, without a framework: it gives each request an id, answers with that id and the bundle's digest,
counts and times it, writes its one log line, and turns what nobody foresaw into a fixed sentence. A text, a
recording or an exception's own words never leave through here.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from predictor import telemetry
from predictor.errors import InferenceFailed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REQUEST_ID_HEADER = "x-request-id"
DIGEST_HEADER = "x-vani-bundle-digest"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for a caller who did not wait; it is only logged and counted
QUIET_ROUTES = frozenset(
    {"/", "/health", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/{model_name}/ready"}
)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

logger = logging.getLogger("vani.requests")
_notes: ContextVar[dict[str, Any]] = ContextVar("notes")


def note(**facts: str | float | None) -> None:
    """Add facts to the log line of the request that is being answered. Never text or audio."""
    _notes.get({}).update(facts)


def request_id() -> str:
    """The id of the request that is being answered: the caller's, or one made here."""
    return str(_notes.get({}).get("request_id", ""))


def trace_id() -> str:
    """The W3C trace id that the caller sent, or one made here."""
    return str(_notes.get({}).get("trace_id", ""))


class Edge:
    """Wraps an ASGI app. `digest` goes into every response."""

    def __init__(self, app: App, digest: str) -> None:
        self._app, self._digest = app, digest

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        facts = _identify(dict(scope["headers"]))
        _notes.set(facts)
        status = 500
        begun = False

        async def send_with_identity(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                identity = ((REQUEST_ID_HEADER, facts["request_id"]), (DIGEST_HEADER, self._digest))
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in identity),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_identity)
        except asyncio.CancelledError:
            status = CLIENT_CLOSED_REQUEST
            raise
        except Exception:
            logger.exception("unforeseen error request_id=%s", facts["request_id"])
            if begun:
                raise
            await _send_failure(send_with_identity, facts["request_id"])
        finally:
            _record(scope, status, time.perf_counter() - started, facts)


def _identify(headers: dict[bytes, bytes]) -> dict[str, Any]:
    """The request's id and trace id; what a caller sends is used only if it is safe to write to a log."""
    given = _REQUEST_ID.fullmatch(headers.get(REQUEST_ID_HEADER.encode(), b""))
    trace = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b""))
    return {
        "request_id": given[0].decode() if given else str(uuid.uuid4()),
        "trace_id": trace[1].decode() if trace else uuid.uuid4().hex,
    }


async def _send_failure(send: Send, identity: str) -> None:
    body = json.dumps({"error": str(InferenceFailed()), "request_id": identity}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _record(scope: Message, status: int, seconds: float, facts: dict[str, Any]) -> None:
    route = getattr(scope.get("route"), "path", "none")  # the pattern, not the path: paths are unbounded
    telemetry.REQUESTS.labels(route, str(status)).inc()
    telemetry.REQUEST_SECONDS.labels(route).observe(seconds)
    level = logging.DEBUG if route in QUIET_ROUTES and status < 400 else logging.INFO  # noqa: PLR2004
    rest = " ".join(f"{name}={value}" for name, value in facts.items())
    logger.log(level, "%s %s status=%d ms=%.1f %s", scope["method"], route, status, seconds * 1000, rest)
