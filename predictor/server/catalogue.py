"""What is served, whether it is ready, and loading and unloading: what KServe has not, or answers less truly."""

import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from predictor.errors import BadRequest
from predictor.models import Model
from predictor.protocol import tensors
from predictor.protocol.payload import parse_json
from predictor.server import openapi
from predictor.server.parts import Serving, body_of, call_of, version_of

EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters")
PLATFORM = "onnxruntime_onnx"


def describe(model: Model, versions: list[str]) -> dict[str, Any]:
    """A model's metadata: V2's fields, and as parameters which bytes it is."""
    bundle = model.recognizer.bundle
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": list(tensors.INPUTS),
        "outputs": list(tensors.OUTPUTS),
        "parameters": {
            "bundle_digest": bundle.digest,
            "bundle_name": bundle.name,
            "decodings": list(model.recognizer.decodings),
            "family": bundle.family,
            "languages": list(bundle.languages),
            "precision": bundle.graph.precision,
        },
    }


def routes(serving: Serving) -> APIRouter:  # noqa: C901  (a list of routes)
    router = APIRouter()
    models = serving.models
    started = int(time.time())

    @router.get("/health", **openapi.HEALTH)
    async def health() -> JSONResponse:
        served = [{"name": m.name, "version": m.version, "bundle_digest": m.digest} for m in models]
        content: dict[str, Any] = {"status": "healthy" if serving.ready else "stopping", "models": served}
        if models.only:  # as it was when there was never more than one
            content |= {"model": models.only.name, "bundle_digest": models.only.digest}
        return JSONResponse(content, 200 if serving.ready else 503)

    @router.get("/v2/health/ready", **openapi.READY)
    async def ready() -> JSONResponse:
        is_ready = serving.ready and any(True for _ in models)
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @router.get("/v2/health/live", **openapi.READY)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2", **openapi.SERVER)
    async def server_metadata() -> dict[str, Any]:
        return {"name": "vani", "version": metadata.version("vani"), "extensions": list(EXTENSIONS)}

    @router.get("/v2/models", **openapi.LIST)
    async def list_models() -> dict[str, list[str]]:
        return {"models": sorted({model.name for model in models})}

    @router.get("/v2/models/{model_name}", **openapi.METADATA)
    @router.get("/v2/models/{model_name}/versions/{model_version}", **openapi.METADATA)
    async def model_metadata(request: Request, model_name: str) -> dict[str, Any]:
        model = serving.find(call_of(request), model_name, version_of(request))
        return describe(model, models.versions(model_name))

    @router.get("/v2/models/{model_name}/ready", **openapi.MODEL_READY)
    @router.get("/v2/models/{model_name}/versions/{model_version}/ready", **openapi.MODEL_READY)
    async def model_ready(request: Request, model_name: str) -> JSONResponse:
        model = serving.find(call_of(request), model_name, version_of(request))
        return JSONResponse({"name": model.name, "ready": serving.ready}, 200 if serving.ready else 503)

    @router.get("/models", **openapi.LIST)
    async def described_models() -> list[dict[str, Any]]:
        return [
            {
                "id": model.name,
                "name": model.name,
                "description": f"{model.recognizer.bundle.name} {model.version}",
                "version": model.version,
                "bundle_digest": model.digest,
                "languages": list(model.recognizer.bundle.languages),
                "ready": serving.ready,
            }
            for model in models
        ]

    @router.get("/languages", **openapi.LIST)
    async def languages() -> list[str]:
        return sorted({code for model in models for code in model.recognizer.bundle.languages})

    def card(model: Model) -> dict[str, Any]:
        """OpenAI's model object, with what KServe's V1 says of a model."""
        return {
            "id": model.name,
            "object": "model",
            "created": started,
            "owned_by": "vani",
            "name": model.name,
            "ready": serving.ready,
        }

    @router.get("/v1/models", **openapi.LIST)
    async def v1_models() -> dict[str, Any]:
        """KServe's V1 list and OpenAI's in one object: each client finds the key that it looks for."""
        served = {model.name: model for model in models}
        return {"object": "list", "data": [card(m) for m in served.values()], "models": sorted(served)}

    @router.get("/v1/models/{model_name}", **openapi.MODEL_READY)
    async def v1_model(request: Request, model_name: str) -> JSONResponse:
        model = serving.find(call_of(request), model_name)
        return JSONResponse(card(model), 200 if serving.ready else 503)

    return router


def repository_routes(
    serving: Serving, load: Callable[[str, str | None], Awaitable[Model]], unload: Callable[[str], None]
) -> APIRouter:
    """Triton's model repository extension."""
    router = APIRouter()

    @router.post("/v2/repository/index", **openapi.INDEX)
    async def index(request: Request) -> list[dict[str, str]]:
        only_ready = _object(await body_of(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise BadRequest("ready must be true or false")
        entries = serving.models.index()
        if only_ready:
            entries = [entry for entry in entries if entry.state == "READY"]
        return [{"name": e.name, "version": e.version, "state": e.state, "reason": e.reason} for e in entries]

    @router.post("/v2/repository/models/{model_name}/load", **openapi.LOAD)
    async def load_model(request: Request, model_name: str) -> dict[str, Any]:
        parameters = _object(await body_of(request)).get("parameters") or {}
        version = parameters.get("version") if isinstance(parameters, dict) else None
        if not isinstance(version, str | None):
            raise BadRequest("parameters.version must be text")
        call_of(request).model = model = await load(model_name, version)
        return {"name": model.name, "load": True, "version": model.version, "bundle_digest": model.digest}

    @router.post("/v2/repository/models/{model_name}/unload", **openapi.LOAD)
    async def unload_model(model_name: str) -> dict[str, Any]:
        unload(model_name)
        return {"name": model_name, "unload": True}

    return router


def _object(body: bytearray) -> dict[str, Any]:
    content = parse_json(body) if body else {}
    if not isinstance(content, dict):
        raise BadRequest("the body must be a JSON object, or empty")
    return content
