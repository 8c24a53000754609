"""Live dictation over a WebSocket: 16 kHz PCM in, partial and final hypotheses out (see predictor.live)."""

import asyncio
import json
from contextlib import ExitStack, aclosing

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from predictor import answers, live, telemetry
from predictor.call import Call, refused
from predictor.edge import CALL
from predictor.errors import BadRequest, InferenceFailed, PredictorError
from predictor.features import SAMPLE_RATE_HZ
from predictor.live import Dictation
from predictor.models import Model
from predictor.protocol import plain
from predictor.protocol.fields import as_language
from predictor.segments import Window
from predictor.server.parts import Serving
from predictor.transcript import Word

_HELLO_SECONDS = 10.0  # for a client's first message, where it has to bring a key
_IDLE_SECONDS = 60.0  # a microphone is never silent on the wire; who says nothing for so long has gone
_REFUSED = 1008  # WebSocket's "policy violation"
_FAILED = 1011  # "internal error"
_SAMPLE_BYTES = 2


def routes(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/audio/stream")
    async def stream(socket: WebSocket, model: str | None = None, language: str | None = None) -> None:
        language = as_language(language)
        call: Call = socket.scope[CALL]
        await socket.accept()
        with ExitStack() as held:
            try:
                await _enter(serving, call, socket)
                held.enter_context(serving.door.admit(call))
                found = serving.find(call, model or None)
                found.recognizer.check(language)
                await socket.send_text(
                    json.dumps({"type": "ready", "model": found.name, "bundle_digest": found.digest})
                )
                await _dictate(serving, call, found, socket, language)
                await socket.close()
            except PredictorError as error:
                refused(error)
                await _part(socket, error)
            except WebSocketDisconnect:
                telemetry.refused("gone")

    return router


async def _enter(serving: Serving, call: Call, socket: WebSocket) -> None:
    """By a header, or where browsers cannot send one, by the first message."""
    header = socket.headers.get
    if serving.door.needs_key and not (header("authorization") or header("x-api-key")):
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                message = live.read_message(await _text(socket))
        except TimeoutError:
            raise BadRequest("the first message must bring the key, within 10 seconds") from None
        serving.door.authenticate(call, (message.key or "") if isinstance(message, live.Start) else "")
    else:
        serving.door.check(call, header)


async def _text(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text")
    if not isinstance(text, str):
        raise BadRequest('the first message must be text: {"type": "start", "key": "..."}')
    return text


async def _dictate(serving: Serving, call: Call, model: Model, socket: WebSocket, language: str | None) -> None:
    async def recognize(window: Window, code: str | None) -> tuple[list[Word], str | None]:
        seconds = len(window.samples) / SAMPLE_RATE_HZ
        with serving.service.place(call) as place:
            place.take(seconds)
            return await serving.service.recognize(call, model, window, code)

    recognizer = model.recognizer
    dictation = Dictation(recognize, language, recognizer.bundle.max_window_seconds, recognizer.max_audio_seconds)
    reader = asyncio.create_task(_listen(serving, call, socket, dictation))
    try:
        async with aclosing(dictation.events()) as events:
            async for event in events:
                if reader.done() and isinstance(reader.exception(), WebSocketDisconnect):
                    break
                if isinstance(event, live.Done) and reader.done() and reader.exception():
                    break  # an error follows: it is over, and not done
                await socket.send_text(event.to_json())
                if isinstance(event, live.Final):
                    call.language = event.language
        if reader.done():
            reader.result()
    finally:
        reader.cancel()


async def _listen(serving: Serving, call: Call, socket: WebSocket, dictation: Dictation) -> None:
    """Feed what comes until the client ends; whatever goes wrong ends the dictation too."""
    try:
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    message = await socket.receive()
            except TimeoutError:
                raise BadRequest(f"nothing came for {_IDLE_SECONDS:g} seconds") from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            data = message.get("bytes")
            if data is not None:
                if call.key:
                    serving.door.meter.check(call.key)
                    serving.door.meter.charge(call.key, len(data) / _SAMPLE_BYTES / SAMPLE_RATE_HZ)
                dictation.feed(data)
                await dictation.room()
            elif isinstance(live.read_message(message.get("text") or ""), live.End):
                return
    finally:
        dictation.end()


async def _part(socket: WebSocket, error: PredictorError) -> None:
    content = {"type": "error", **plain.asr_error(error, str(error))}
    status, _ = answers.status(error)
    await socket.send_text(json.dumps(content, ensure_ascii=False))
    await socket.close(_FAILED if isinstance(error, InferenceFailed) or status >= 500 else _REFUSED)  # noqa: PLR2004
