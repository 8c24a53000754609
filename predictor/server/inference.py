"""KServe's own protocols, V1 and V2: what KServe parses on the event loop, or answers less truly."""

from fastapi import APIRouter, Request, Response

from predictor.protocol import v1, v2
from predictor.server import openapi
from predictor.server.parts import Direct, Serving, body_of, call_of, json_response, version_of


def routes(serving: Serving) -> APIRouter:
    router = APIRouter(route_class=Direct)
    service = serving.service

    @router.post("/v2/models/{model_name}/infer", **openapi.V2_INFER)
    @router.post("/v2/models/{model_name}/versions/{model_version}/infer", **openapi.V2_INFER)
    async def infer(request: Request, model_name: str) -> Response:
        call = call_of(request)
        model = serving.find(call, model_name, version_of(request))
        json_bytes = request.headers.get("inference-header-content-length")
        asked = await serving.read(call, await body_of(request), v2.read, json_bytes)
        transcripts = await service.transcribe(call, model, asked.clips)
        content, head_bytes = await serving.write(
            call,
            transcripts,
            lambda: v2.write(
                asked,
                transcripts,
                model_name=model.name,
                model_version=model.version,
                parameters={"bundle_digest": model.digest, "request_id": call.id},
                id=asked.id or call.id,
            ),
        )
        if head_bytes is None:
            return json_response(content)
        headers = {"Inference-Header-Content-Length": str(head_bytes)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    @router.post("/v1/models/{model_name}:predict", **openapi.V1_PREDICT)
    async def predict(request: Request, model_name: str) -> Response:
        call = call_of(request)
        model = serving.find(call, model_name)
        content_type = request.headers.get("content-type", "")
        clips = await serving.read(call, await body_of(request), v1.read, content_type)
        transcripts = await service.transcribe(call, model, clips)
        return json_response(await serving.write(call, transcripts, lambda: v1.write(transcripts)))

    return router
