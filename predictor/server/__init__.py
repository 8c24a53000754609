"""The served models behind HTTP and gRPC. The only door to kserve, fastapi and grpc.

    inference   V1, V2                                    registry   the models, as KServe's ModelServer sees them
    speech      OpenAI's route, /transcribe, /asr         rpc        V2 over gRPC
    dictation   the WebSocket                             openapi    what /openapi.json says of each route
    catalogue   what is served, health, load, unload      parts      what routes are made of
    process     what the interpreter is told

The event loop does no heavy work: that is the scheduler's threads' (predictor.scheduling).
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import uvloop
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from kserve import ModelServer
from kserve.model_server import app as kserve_app
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from predictor import answers, page, telemetry, tracing
from predictor.access import Keyring
from predictor.cache import TranscriptCache
from predictor.call import DIGEST_HEADER, MODEL_HEADER, REQUEST_ID_HEADER, VERSION_HEADER, Door, refused
from predictor.edge import CALL, Edge
from predictor.engine import BatchRule
from predictor.engine.choice import EngineKind
from predictor.errors import BadRequest, InvalidBundle, PredictorError
from predictor.models import Model, Models
from predictor.recognizer import Recognizer
from predictor.scheduling import Scheduler
from predictor.server import catalogue, dictation, inference, openapi, process, rpc, speech
from predictor.server.parts import Serving
from predictor.server.registry import Registry
from predictor.service import Service
from predictor.settings import Settings

_LOOK_SECONDS = 0.1  # for a signal that came
_MEGABYTE = 1 << 20

Load = Callable[[Path, float, BatchRule, EngineKind], Recognizer]

logger = logging.getLogger("vani")


def page_routes() -> APIRouter:
    """The page, to browsers; `/` stays KServe's liveness to everybody else."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return Response(b'{"status":"alive"}', media_type="application/json", headers={"Vary": "Accept"})
        return _asset(request, page.ASSETS["/"])

    @router.get("/page/{name}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        found = page.ASSETS.get(f"/page/{name}")
        if found is None:
            raise HTTPException(404, "there is no such page")
        return _asset(request, found)

    return router


def _asset(request: Request, asset: page.Asset) -> Response:
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",  # asked for again each time, and answered with 304: a new version shows at once
        "Content-Security-Policy": page.CSP,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
    }
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


class Repository:
    """Loading and unloading while serving, one at a time; only where a model repository is set up.

    Without one, what is unloaded could not be loaded again.
    """

    def __init__(self, models: Models) -> None:
        self._models, self._busy = models, asyncio.Lock()

    async def load(self, name: str, version: str | None) -> Model:
        """Serve the repository's bundle of that name; raises BadRequest, UnknownModel or InvalidBundle."""
        self._check()
        async with self._busy:
            directory = self._models.locate(name, version)
            try:
                model = await asyncio.to_thread(self._models.read, directory)
            except InvalidBundle as error:
                logger.error("bundle %s is refused: %s", directory.name, "; ".join(error.problems))  # noqa: TRY400
                raise
            self._models.add(model)
            return model

    def unload(self, name: str) -> None:
        """Serve no version of a name any more; raises BadRequest or UnknownModel."""
        self._check()
        self._models.remove(name)

    def _check(self) -> None:
        if self._models.repository is None:
            raise BadRequest("this server has no model repository: its models stay as they are")


async def _answer_error(request: Request, error: Exception) -> Response:
    """A PredictorError, or a framework's refusal of the request, in the shape of the route."""
    path = request.url.path
    if isinstance(error, PredictorError):
        refused(error)
        status, headers, content = answers.refusal(path, error)
        if status == 500:  # noqa: PLR2004
            logger.error("inference failed request_id=%s", request.scope[CALL].id, exc_info=error)
        return Response(content, status, headers, media_type="application/json")
    headers = {}
    if isinstance(error, RequestValidationError):  # its own text would repeat the input
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        status, message = 400, "the request is not valid: " + "; ".join(problems)
    elif isinstance(error, ClientDisconnect):  # in the middle of its body; nobody reads this
        status, message = answers.CLIENT_CLOSED_REQUEST, "the client went away"
    elif isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, dict(error.headers or {})
    else:
        raise error
    return Response(answers.body(path, status, message), status, headers, media_type="application/json")


def install(app: FastAPI, serving: Serving, repository: Repository, cors_origins: tuple[str, ...] = ()) -> None:
    """Add the routes, the error table and the edge to an application, before KServe adds its own."""
    routers = (
        speech.routes(serving),
        inference.routes(serving),
        dictation.routes(serving),
        catalogue.routes(serving),
        catalogue.repository_routes(serving, repository.load, repository.unload),
        page_routes(),
    )
    routes = [route for router in routers for route in router.routes]
    app.router.routes += routes  # and not routers, which would each be searched on the way to a route
    for kind in (PredictorError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _answer_error)
    described = openapi.document(routes)
    app.openapi = lambda: described  # type: ignore[method-assign]
    app.add_middleware(Edge, door=serving.door, max_body_bytes=serving.max_body_bytes)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, DIGEST_HEADER, MODEL_HEADER, VERSION_HEADER, "retry-after"],
        )


def serve(settings: Settings, load: Load = Recognizer.load) -> None:
    """Load the bundles, then open the ports, and serve until SIGTERM or SIGINT; requests in flight are finished.

    `load` makes a Recognizer of a directory, a limit in seconds of audio, the rule of calling its engine and which it
    is. Raises InvalidBundle or InvalidKeys before a port is opened.
    """
    keyring = Keyring(settings.api_keys_file) if settings.api_keys_file else None
    tracing.configure()
    serving = _serving(settings, keyring, load)
    repository = Repository(serving.models)
    install(kserve_app, serving, repository, settings.cors_origins)
    # KServe times every request for a trace log that nobody turns on: a tenth of what serving costs.
    RESTServer._add_middlewares = lambda _self, _app: None
    server = ModelServer(
        http_port=settings.http_port,
        workers=1,  # more would each load the model; scale with replicas
        registered_models=Registry(serving),
        enable_grpc=False,  # KServe's; ours takes its place
        enable_latency_logging=False,
        grace_period=settings.shutdown_grace_seconds,
    )
    if settings.grpc_port:
        servicer = rpc.Servicer(serving, repository.load, repository.unload)
        grace = settings.shutdown_grace_seconds
        server._grpc_server = rpc.RpcServer(servicer, settings.grpc_port, serving.max_body_bytes, grace)
        server.servers.append(server._grpc_server.start())
    server.servers.append(_stop_together(server, serving))
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())  # KServe sets this one up before it makes the one that runs
    process.tune()
    logger.info("listening on port %d, gRPC on %s", settings.http_port, settings.grpc_port or "none")
    server.start([])
    serving.service.scheduler.stop()
    tracing.shutdown()


async def _stop_together(server: ModelServer, serving: Serving) -> None:
    """uvicorn takes SIGTERM for itself and hands it to KServe once HTTP has ended; gRPC would go on until then, and
    have the time of grace once more."""
    while not (server._rest_server and server._rest_server._server.should_exit):  # noqa: ASYNC110  (it has no event)
        await asyncio.sleep(_LOOK_SECONDS)
    serving.ready = False
    if server._grpc_server:
        await server._grpc_server.stop()


def _serving(settings: Settings, keyring: Keyring | None, load: Load) -> Serving:
    rule = BatchRule(streams=settings.engine_threads)

    def read(directory: Path) -> Recognizer:
        return load(directory, settings.max_audio_seconds, rule, settings.engine)

    models = Models(read, settings.model_repository)
    for directory in settings.bundle:
        model = models.read(directory, settings.model_name)
        if model.version in models.versions(model.name):
            raise InvalidBundle([f"two bundles are {model.name} version {model.version}"])
        models.add(model)
    door = Door(
        models,
        keyring,
        settings.max_pending_requests,
        settings.max_pending_mb * _MEGABYTE,
        settings.request_timeout_seconds,
    )
    scheduler = Scheduler(rule.streams, settings.decode_threads, settings.max_pending_audio_seconds, telemetry.batch)
    known = TranscriptCache(settings.cache_mb * _MEGABYTE) if settings.cache_mb else None
    return Serving(models, Service(scheduler, door.meter, known), door, settings.max_body_mb * _MEGABYTE)
