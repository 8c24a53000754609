"""A Recognizer behind HTTP: a kserve.Model in a kserve.ModelServer, and the routes that KServe has not.

The only door to kserve and fastapi, and the only place that knows which status answers which error. The event loop
does no heavy work: reading and decoding go to one pool, inference to another (`predictor.scheduling`); only the JSON of
V1 is parsed on it, by KServe.
"""

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import ModelNotFound
from kserve.model_server import app as kserve_app
from kserve.protocol.infer_type import RequestedOutput
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from predictor import edge, protocol, telemetry, transcript
from predictor.errors import (
    AudioTooLong,
    BadRequest,
    InvalidAudio,
    ModelError,
    Overloaded,
    PredictorError,
    UnsupportedAudio,
)
from predictor.protocol import Clip, Tensor
from predictor.recognizer import Recognizer
from predictor.scheduling import Scheduler
from predictor.segments import Window
from predictor.settings import Settings
from predictor.transcript import Transcript, Word

STATUS: dict[type[PredictorError], int] = {
    BadRequest: 400,
    AudioTooLong: 413,
    UnsupportedAudio: 415,
    InvalidAudio: 422,
    ModelError: 500,
    Overloaded: 503,
}

SWITCH_SECONDS = 0.0005

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True)
class _Job:
    """What one request asks for and how its answer is written."""

    clips: list[Clip]
    write: Callable[[list[Transcript]], dict[str, Any] | InferResponse]


class AsrModel(Model):  # type: ignore[misc]  # kserve is not typed
    """A Recognizer as KServe's V1 and V2 routes call it: preprocess, predict, postprocess."""

    def __init__(self, name: str, recognizer: Recognizer, scheduler: Scheduler) -> None:
        super().__init__(name)
        self.recognizer, self.scheduler = recognizer, scheduler
        self.ready = True  # the recognizer has been loaded and warmed up

    def get_input_types(self) -> list[dict[str, Any]]:
        return list(protocol.INPUTS)

    def get_output_types(self) -> list[dict[str, Any]]:
        return list(protocol.OUTPUTS)

    async def preprocess(
        self, payload: dict[str, Any] | InferRequest | bytes, headers: dict[str, str] | None = None
    ) -> _Job:
        return await self.scheduler.decode(self._read, payload, headers or {})

    async def predict(self, payload: _Job, headers: dict[str, str] | None = None) -> tuple[_Job, list[Transcript]]:
        return payload, await self.transcribe(payload.clips)

    async def postprocess(
        self, result: tuple[_Job, list[Transcript]], headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        job, transcripts = result
        return job.write(transcripts)

    async def transcribe(self, clips: list[Clip]) -> list[Transcript]:
        """The transcripts of one request's clips, which are worked on side by side; one bad clip fails the request."""
        for clip in clips:
            self.recognizer.check_language(clip.language)
        with self.scheduler.admit(), telemetry.PENDING.track_inprogress():
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._transcribe(clip)) for clip in clips]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        transcripts = [task.result() for task in tasks]
        edge.note(clips=len(clips), audio_seconds=round(sum(t.duration_seconds for t in transcripts), 2))
        return transcripts

    async def _transcribe(self, clip: Clip) -> Transcript:
        """`Recognizer.transcribe`, with every step in its pool: a long file shares the engine window by window."""
        with telemetry.DECODE_SECONDS.time():
            seconds, windows = await self.scheduler.decode(self._prepare, clip.data)
        language = clip.language
        words: list[Word] = []
        for window in windows:
            with telemetry.INFER_SECONDS.time():
                found, language = await self.scheduler.infer(self.recognizer.recognize, window, language)
            words += found
        result = transcript.join(words, language, seconds)
        telemetry.transcribed(result)
        return result

    def _prepare(self, data: bytes) -> tuple[float, list[Window]]:
        waveform = self.recognizer.decode(data)
        return waveform.duration_seconds, self.recognizer.split(waveform)

    def _read(self, payload: dict[str, Any] | InferRequest | bytes, headers: dict[str, str]) -> _Job:
        if isinstance(payload, InferRequest):
            return self._read_v2(payload)
        if isinstance(payload, bytes) and not headers.get("content-type", "").startswith("application/json"):
            return _Job([Clip(payload, None)], protocol.write_v1)  # the file itself, as `Content-Type: audio/...`
        body = protocol.parse_json(payload) if isinstance(payload, bytes) else payload
        return _Job(protocol.read_v1(body), protocol.write_v1)

    def _read_v2(self, request: InferRequest) -> _Job:
        tensors = [Tensor(i.name, i.datatype, tuple(i.shape), i.data, i._raw_data) for i in request.inputs]
        requested = [output.name for output in request.request_outputs] if request.request_outputs else None
        protocol.write_v2([], requested)  # refuse an unknown output before the work, not after it
        return _Job(
            protocol.read_v2(tensors, request.parameters),
            lambda transcripts: self._write_v2(request, protocol.write_v2(transcripts, requested)),
        )

    def _write_v2(self, request: InferRequest, tensors: list[protocol.OutputTensor]) -> InferResponse:
        outputs = []
        for tensor in tensors:
            kind = np.object_ if tensor.datatype == "BYTES" else np.float64
            values = np.array(tensor.values, dtype=kind)
            outputs.append(InferOutput(tensor.name, list(values.shape), tensor.datatype, values))
        bundle = self.recognizer.bundle
        return InferResponse(
            request.id or edge.request_id(),
            self.name,
            outputs,
            model_version=bundle.version,
            parameters={"bundle_digest": bundle.digest, "request_id": edge.request_id()},
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )


def _read_infer_request(body: bytearray, json_bytes: str, model_name: str) -> InferRequest:
    """What KServe makes of a V2 body, made here: its own reader parses on the event loop, where a long recording in
    base64 holds everybody up, and it reads the tensors of the binary extension as if audio were UTF-8."""
    head, tensors = protocol.read_v2_body(body, json_bytes)
    inputs = [InferInput(t.name, list(t.shape), t.datatype, t.values) for t in tensors]
    for infer_input, tensor in zip(inputs, tensors, strict=True):
        infer_input._raw_data = tensor.raw
    identity, parameters, outputs = head.get("id"), head.get("parameters"), head.get("outputs")
    if not isinstance(parameters, dict | None) or not isinstance(outputs, list | None):
        raise BadRequest("parameters must be an object and outputs a list")
    if not isinstance(identity, str | None):
        raise BadRequest("id must be text")
    requested = [_read_requested(output) for output in outputs] if outputs else None
    return InferRequest(model_name, inputs, identity, parameters=parameters, request_outputs=requested)


def _read_requested(output: object) -> RequestedOutput:
    name = output.get("name") if isinstance(output, dict) else None
    parameters = output.get("parameters") if isinstance(output, dict) else None
    if not isinstance(name, str) or not isinstance(parameters, dict | None):
        raise BadRequest("every requested output needs a name")
    return RequestedOutput(name, parameters)


def routes(model: AsrModel) -> APIRouter:
    """What KServe does not have, or answers less truly."""
    router = APIRouter()
    bundle = model.recognizer.bundle

    @router.get("/health")
    async def health() -> JSONResponse:
        content = {
            "status": "healthy" if model.ready else "stopping",
            "model": model.name,
            "bundle_digest": bundle.digest,
        }
        return JSONResponse(content, 200 if model.ready else 503)

    @router.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": model.ready}, 200 if model.ready else 503)

    @router.get(f"/v2/models/{model.name}")
    async def metadata() -> dict[str, Any]:
        return {
            "name": model.name,
            "versions": [bundle.version],
            "platform": "onnxruntime",
            "inputs": model.get_input_types(),
            "outputs": model.get_output_types(),
            "parameters": {
                "bundle_digest": bundle.digest,
                "bundle_name": bundle.name,
                "family": bundle.family,
                "languages": list(bundle.languages),
                "precision": bundle.graph.precision,
            },
        }

    @router.post("/v2/models/{model_name}/infer", response_model=None)
    async def infer(request: Request, model_name: str) -> Response:
        if model_name != model.name:
            raise ModelNotFound(model_name)
        body = await _read_body(request)
        json_bytes = request.headers.get("inference-header-content-length", str(len(body)))
        parsed = await model.scheduler.decode(_read_infer_request, body, json_bytes, model_name)
        answer, _ = await model(parsed, dict(request.headers))
        content, json_bytes = answer.to_rest()
        if json_bytes is None:
            return JSONResponse(content)
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    @router.post("/transcribe")
    async def transcribe(
        file: Annotated[UploadFile, File()],
        language: Annotated[str | None, Form()] = None,
        model_name: Annotated[str | None, Form(alias="model")] = None,
    ) -> dict[str, Any]:
        if model_name not in (None, "", model.name):
            raise BadRequest(f"model {model_name[:40]!r} is not served here; {model.name!r} is")
        started = time.perf_counter()
        (result,) = await model.transcribe([Clip(await file.read(), language or None)])
        seconds = time.perf_counter() - started
        return {
            "id": str(uuid.uuid4()),
            "text": result.text,
            "duration": round(result.duration_seconds, 3),
            "processing_time": round(seconds, 4),
            "real_time_factor": round(seconds / result.duration_seconds, 4),
            "language": result.language,
            "model": model.name,
            "timestamp": datetime.now(UTC).isoformat(),
            "trace_id": edge.trace_id(),
        }

    return router


async def _read_body(request: Request) -> bytearray:
    """The body as it comes: joining a long recording's at its end would hold the event loop up."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    return body


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    """A PredictorError, or a framework's refusal of the request, in KServe's shape {"error": sentence}."""
    if isinstance(error, PredictorError):
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        retry = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, Overloaded) else None
        if status == 500:  # noqa: PLR2004
            logger.error("inference failed request_id=%s", edge.request_id(), exc_info=error)
        return JSONResponse({"error": str(error)}, status, retry)
    if isinstance(error, RequestValidationError):  # its own text would repeat the input, audio and all
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        return JSONResponse({"error": "the request is not valid: " + "; ".join(problems)}, 400)
    if isinstance(error, ClientDisconnect):  # in the middle of its body; nobody reads this
        return JSONResponse({"error": "the client went away"}, edge.CLIENT_CLOSED_REQUEST)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    raise error


def install(app: FastAPI, model: AsrModel) -> None:
    """Add the routes, the error table and the edge to an application, before KServe adds its own."""
    app.include_router(routes(model))
    for kind in (PredictorError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(edge.Edge, digest=model.recognizer.bundle.digest)


def serve(settings: Settings) -> None:
    """Load the bundle, then open the port, and serve until SIGTERM or SIGINT; requests in flight are finished.

    Raises InvalidBundle before the port is opened.
    """
    # The event loop takes the interpreter's lock again after every read and write, and each time waits as long as this
    # for a pool's thread that holds it; the default of 5 ms is what made /health slow under load.
    sys.setswitchinterval(SWITCH_SECONDS)
    recognizer = Recognizer.load(settings.bundle, settings.max_audio_seconds)
    scheduler = Scheduler(settings.engine_threads, settings.decode_threads, settings.max_pending_requests)
    model = AsrModel(settings.model_name or recognizer.bundle.name, recognizer, scheduler)
    telemetry.served(model.name, recognizer.bundle)
    install(kserve_app, model)
    server = ModelServer(
        http_port=settings.http_port,
        workers=1,  # more would each load the model; scale with replicas
        enable_grpc=False,
        enable_latency_logging=False,
        grace_period=settings.shutdown_grace_seconds,
    )
    bundle = recognizer.bundle
    logger.info(
        "serving %s version %s (%s) on port %d", model.name, bundle.version, bundle.digest[:19], settings.http_port
    )
    server.start([model])
    scheduler.stop()
