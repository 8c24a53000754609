"""The routes of speech services: OpenAI's transcriptions, and those of the two services that this one replaces."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from predictor import answers, transcript
from predictor.call import Call, refused
from predictor.errors import PredictorError
from predictor.models import Model
from predictor.protocol import multipart, openai, plain
from predictor.protocol.openai import Asked
from predictor.server import openapi
from predictor.server.parts import Direct, Serving, body_of, call_of, json_response
from predictor.service import Prepared
from predictor.transcript import Word

# What OpenAI's own clients and examples send when nobody has told them a model's name.
DEFAULT_NAMES = frozenset({"", "default", "whisper-1"})


def routes(serving: Serving) -> APIRouter:
    router = APIRouter(route_class=Direct)
    service = serving.service

    @router.post("/v1/audio/transcriptions", **openapi.TRANSCRIPTIONS)
    async def transcriptions(request: Request) -> Response:
        call = call_of(request)
        form = await serving.read(call, await body_of(request), multipart.read, request.headers.get("content-type", ""))
        asked = openai.read(form)
        model = serving.find(call, None if asked.model in DEFAULT_NAMES else asked.model)
        if asked.stream:
            place = call.held.enter_context(service.place(call))
            prepared = await service.prepare(call, model, asked.clip, place)
            return StreamingResponse(_events(serving, call, model, asked, prepared), media_type="text/event-stream")
        (result,) = transcripts = await service.transcribe(call, model, [asked.clip])
        content, media_type = await serving.write(call, transcripts, lambda: openai.write(asked, result))
        return Response(content, media_type=media_type)

    @router.post("/transcribe", **openapi.TRANSCRIBE)
    async def transcribe(request: Request) -> Response:
        call = call_of(request)
        form = await serving.read(call, await body_of(request), multipart.read, request.headers.get("content-type", ""))
        asked = plain.read_transcribe(form)
        model = serving.find(call, asked.model or None)
        began = time.perf_counter()
        (result,) = transcripts = await service.transcribe(call, model, [asked.clip])
        seconds = time.perf_counter() - began
        write = partial(
            plain.write_transcribe,
            result,
            processing_seconds=seconds,
            model=model.name,
            trace_id=call.trace.trace_id,
        )
        return json_response(await serving.write(call, transcripts, write))

    @router.post("/asr", **openapi.ASR)
    async def asr(request: Request) -> Response:
        call = call_of(request)
        model = serving.find(call)
        asked = await serving.read(call, await body_of(request), plain.read_asr)
        transcripts = await service.transcribe(call, model, asked.clips)
        return json_response(await serving.write(call, transcripts, lambda: plain.write_asr(asked, transcripts)))

    return router


async def _events(serving: Serving, call: Call, model: Model, asked: Asked, prepared: Prepared) -> AsyncIterator[bytes]:
    """Server-sent events, one a piece as its words are final, and the whole text in the end.

    The status has been sent: what goes wrong now is an event of its own, which OpenAI's clients raise.
    """
    words: list[Word] = []
    language = asked.clip.language
    try:
        async with aclosing(serving.service.stream(call, model, asked.clip, prepared)) as pieces:
            async for piece in pieces:
                if piece.words:
                    delta = " ".join(word.text for word in piece.words)
                    yield openai.event(f" {delta}" if words else delta)
                words += piece.words
                language = piece.language
        yield openai.done(asked, transcript.join(words, language, prepared.seconds))
    except PredictorError as error:
        refused(error)
        code, _ = answers.status(error)
        yield b"data: " + answers.body("/v1/audio/", code, str(error)) + b"\n\n"
