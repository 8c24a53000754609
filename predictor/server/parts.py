"""What every route is made of: the served models with all that answers for them, and a request's own pieces."""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from predictor import telemetry
from predictor.call import Call, Door
from predictor.edge import CALL
from predictor.errors import BadRequest, DeadlineExceeded
from predictor.models import Model, Models
from predictor.service import Service
from predictor.transcript import Transcript

_SMALL_BYTES = 1 << 20  # read on the event loop in a millisecond, where a thread would cost a tenth of one to reach
_SMALL_WORDS = 500

T = TypeVar("T")


@dataclass(slots=True)
class Serving:
    """One serving process. `ready` ends with the first SIGTERM, while requests in flight are still answered."""

    models: Models
    service: Service
    door: Door
    max_body_bytes: int
    ready: bool = True

    def find(self, call: Call, name: str | None = None, version: str | None = None) -> Model:
        """The model that answers this call from here on; raises UnknownModel."""
        call.model = None
        call.model = self.models.find(name, version)
        return call.model

    async def read(self, call: Call, body: bytes | bytearray, work: Callable[..., T], *args: object) -> T:
        """`work(body, *args)`, off the event loop where the body is large."""
        began = time.perf_counter()
        try:
            if len(body) <= _SMALL_BYTES:
                return work(body, *args)
            return await self.service.scheduler.prepare(call.caller, len(body), work, body, *args)
        finally:
            telemetry.stage("read", time.perf_counter() - began)

    async def write(self, call: Call, transcripts: list[Transcript], work: Callable[[], T]) -> T:
        """`work()`, which writes an answer, off the event loop where it is long."""
        words = sum(len(transcript.words) for transcript in transcripts)
        if words <= _SMALL_WORDS:
            return work()
        return await self.service.scheduler.prepare(call.caller, words, work)


class Direct(APIRoute):
    """A route whose endpoint reads its request itself. What the framework does to find an endpoint's arguments and to
    serialise its answer is left out: a tenth of what serving costs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        named = [name for name in inspect.signature(endpoint).parameters if name in self.param_convertors]

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **{name: request.path_params[name] for name in named})
            return response

        return handle


def call_of(request: Request) -> Call:
    call: Call = request.scope[CALL]
    return call


def version_of(request: Request) -> str | None:
    """Of the routes that have one in their path; as an argument it would become a query parameter of the others."""
    return request.path_params.get("model_version")


async def body_of(request: Request) -> bytearray:
    """The body as it comes: joining a long recording's at its end would hold the event loop up.

    Raises DeadlineExceeded where it does not come within the call's time, BadRequest where it is compressed.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("Content-Encoding is not supported: send the body as it is, audio is compressed already")
    call, body = call_of(request), bytearray()
    try:
        async with asyncio.timeout(max(0.0, call.remaining_seconds)):
            async for chunk in request.stream():
                body += chunk
    except TimeoutError:
        raise DeadlineExceeded(call.timeout_seconds) from None
    return body


def json_response(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")
