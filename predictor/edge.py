"""The edge of the server: what holds for every HTTP request and WebSocket, whichever route answers it.

An ASGI middleware, without a framework. It makes the Call, asks the door to let it in, limits its body while it comes,
stops its work when the client goes away, answers with its identity, and closes it with a log line. What nobody foresaw
becomes a fixed sentence: a text, a recording or an exception's own words never leave through here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from typing import Any

from predictor import answers, telemetry
from predictor.call import Call, Door, refused
from predictor.errors import PayloadTooLarge, PredictorError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CALL = "vani.call"  # where a scope holds its Call
_OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
_QUIET_ROUTES = _OPEN_PATHS | {"/v2/models/{model_name}/ready", "/page/{name}"}
_DRAIN_SECONDS = 5.0

logger = logging.getLogger("vani")


class Edge:
    """Wraps an ASGI app; requests of more than `max_body_bytes` are refused."""

    def __init__(self, app: App, door: Door, max_body_bytes: int) -> None:
        self._app, self._door, self._max_body_bytes = app, door, max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Request(self._app, self._door, self._max_body_bytes, scope, receive, send).answer()
        elif scope["type"] == "websocket":
            await self._connect(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _connect(self, scope: Message, receive: Receive, send: Send) -> None:
        """A WebSocket may bring its key in its first message, since browsers cannot send headers: its route asks."""
        header = _header_of(scope)
        call = scope[CALL] = self._door.open(header, _peer(scope), "websocket")
        status = 500

        async def send_with_identity(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = 101
                message["headers"] = [*message.get("headers", ()), *_encoded(call.identity())]
            elif message["type"] == "websocket.close" and status == 500:  # noqa: PLR2004
                status = 403
            await send(message)

        try:
            await self._app(scope, receive, send_with_identity)
        except Exception:
            logger.exception("unforeseen error request_id=%s", call.id)
            raise
        finally:
            self._door.close(call, "WEBSOCKET", _route(scope), status)


class _Request:
    """One HTTP request. Its app runs in the task that the server made for it; a watcher cancels that task when the
    client goes away, and with it everything that waits for a thread."""

    def __init__(  # noqa: PLR0913, PLR0917  (an app, and what ASGI gives it)
        self, app: App, door: Door, max_body_bytes: int, scope: Message, receive: Receive, send: Send
    ) -> None:
        self._app, self._door, self._max_body_bytes = app, door, max_body_bytes
        self._scope, self._receive_next, self._send_on = scope, receive, send
        self._header = _header_of(scope)
        self.call: Call = door.open(self._header, _peer(scope), f"{scope['method']} {scope['path']}"[:60])
        scope[CALL] = self.call
        self._status = 500
        self._begun = False
        self._body_bytes = 0
        self._declared_bytes = _declared_bytes(self._header("content-length"))
        self._body_ended = False
        self._gone = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[Any] | None = None

    async def answer(self) -> None:
        path = self._scope["path"]
        try:
            with ExitStack() as held:
                self._worker = asyncio.current_task()
                self._let_in(held)
                await self._app(self._scope, self._receive, self._send)
        except PredictorError as error:
            refused(error)
            if self._begun:
                raise
            if self._header("expect") is None:  # else the client has not begun: to read would ask for the body
                await self._drain()
            await self._refuse(answers.refusal(path, error), close=not self._body_ended)
        except asyncio.CancelledError:
            self._status = answers.CLIENT_CLOSED_REQUEST
            if self._gone.is_set():
                telemetry.refused("gone")
            elif not self._begun:  # the server stops, and its time of grace is over
                message = "the server is stopping; try again"
                await self._refuse((503, {"retry-after": "1"}, answers.body(path, 503, message)), close=True)
            assert self._worker is not None
            self._worker.uncancel()  # it has been heard; a task that ends as cancelled would be logged as an error
        except Exception:
            logger.exception("unforeseen error request_id=%s", self.call.id)
            if self._begun:
                raise
            await self._refuse(answers.unforeseen(path))
        finally:
            if self._watcher:
                self._watcher.cancel()
            route = _route(self._scope)
            quiet = route in _QUIET_ROUTES and self._status < 400  # noqa: PLR2004
            self._door.close(self.call, self._scope["method"], route, self._status, quiet=quiet)

    def _let_in(self, held: ExitStack) -> None:
        """Raises what the door says. Work is what is posted; to read what is there takes no place."""
        method, path = self._scope["method"], self._scope["path"]
        if method == "OPTIONS" or (method in ("GET", "HEAD") and _is_open(path)):
            return
        self._door.check(self.call, self._header)
        if method != "POST":
            return
        held.enter_context(self._door.admit(self.call))
        held.callback(self._give_back)
        self._count(self._declared_bytes)

    def _count(self, more: int) -> None:
        if self._body_bytes + more > self._max_body_bytes:
            raise PayloadTooLarge(self._max_body_bytes)
        if more:
            self._door.bytes.take(self.call.caller, more)
            self._body_bytes += more

    def _give_back(self) -> None:
        if self._body_bytes:
            self._door.bytes.give(self.call.caller, self._body_bytes)

    async def _receive(self) -> Message:
        if self._body_ended:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive_next()
        if message["type"] == "http.request":
            self._body_ended = not message.get("more_body")
            if self._scope["method"] == "POST":
                if not self._declared_bytes:
                    self._count(len(message.get("body", b"")))
                if self._body_ended:
                    assert self._worker is not None
                    self._watcher = asyncio.create_task(self._watch(self._worker))
        return message

    async def _watch(self, worker: "asyncio.Task[Any]") -> None:
        while (await self._receive_next())["type"] != "http.disconnect":
            pass
        self._gone.set()
        worker.cancel()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._begun = message["status"], True
            message["headers"] = [*message.get("headers", ()), *_encoded(self.call.identity())]
        elif self._watcher and not message.get("more_body"):
            self._watcher.cancel()  # the answer is complete: whoever goes now has what they came for
        await self._send_on(message)

    async def _drain(self) -> None:
        """Read what is left of a refused body, within limits: a client that still sends would not see the answer."""
        left = self._max_body_bytes
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._body_ended and left > 0:
                    message = await self._receive_next()
                    left -= len(message.get("body", b""))
                    self._body_ended = not message.get("more_body")
        except TimeoutError:
            pass

    async def _refuse(self, answer: tuple[int, dict[str, str], bytes], *, close: bool = False) -> None:
        status, headers, body = answer
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        if close:
            headers["connection"] = "close"
        await self._send({"type": "http.response.start", "status": status, "headers": _encoded(list(headers.items()))})
        await self._send({"type": "http.response.body", "body": body})


def _is_open(path: str) -> bool:
    """What probes, scrapers and browsers fetch, who have no key."""
    return (
        path in _OPEN_PATHS or path.startswith("/page/") or (path.startswith("/v2/models/") and path.endswith("/ready"))
    )


def _header_of(scope: Message) -> Callable[[str], str | None]:
    headers = dict(scope["headers"])

    def header(name: str) -> str | None:
        value = headers.get(name.encode())
        return value.decode("latin-1") if value is not None else None

    return header


def _declared_bytes(text: str | None) -> int:
    """Of a body's length; a server in front has checked that it is a number, or there is none."""
    return int(text) if text and text.isdecimal() and len(text) < 19 else 0  # noqa: PLR2004


def _peer(scope: Message) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _route(scope: Message) -> str:
    """The pattern, not the path: paths are unbounded."""
    return getattr(scope.get("route"), "path", "none")


def _encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
