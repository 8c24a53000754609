"""The V2 protocol over gRPC, on KServe's messages.

Our own servicer, because KServe's answers UNKNOWN to a model that is not there, INTERNAL to every load and unload, and
knows neither deadlines nor keys.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc.aio import ServicerContext as Context
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from predictor import answers
from predictor.call import Call, refused
from predictor.errors import BadRequest, InferenceFailed, PredictorError
from predictor.models import Model
from predictor.protocol import tensors, v2, wire
from predictor.protocol.tensors import OutputTensor, Tensor
from predictor.server.catalogue import EXTENSIONS, describe
from predictor.server.parts import Serving

_OVERHEAD_BYTES = 1 << 16  # of a message, beside the audio
_CONTENTS = ("fp32", "int", "uint")
_SERVICE = "inference.GRPCInferenceService"

_RAW_INPUTS = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """A ModelInferRequest whose raw tensors are views of what came; None where that is not one."""

    request: pb.ModelInferRequest | None
    raw: list[memoryview]

    @classmethod
    def read(cls, message: bytes) -> "Inference":
        rest, raw = wire.take_out(message, _RAW_INPUTS)
        try:
            request = pb.ModelInferRequest.FromString(rest)
        except DecodeError:
            return cls(None, [])
        return cls(request, raw or [memoryview(tensor) for tensor in request.raw_input_contents])


class Servicer:
    """The methods of GRPCInferenceService. `load` and `unload` change what is served, as their REST routes do."""

    def __init__(
        self, serving: Serving, load: Callable[[str, str | None], Awaitable[Model]], unload: Callable[[str], None]
    ) -> None:
        self._serving, self._load, self._unload = serving, load, unload

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._serving.ready and any(True for _ in self._serving.models))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="vani", version=metadata.version("vani"), extensions=EXTENSIONS)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        async def answer(call: Call) -> pb.ModelReadyResponse:
            self._serving.find(call, request.name, request.version or None)
            return pb.ModelReadyResponse(ready=self._serving.ready)

        return await self._answered("ModelReady", context, answer, guarded=False)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        async def answer(call: Call) -> pb.ModelMetadataResponse:
            model = self._serving.find(call, request.name, request.version or None)
            described = describe(model, self._serving.models.versions(model.name))
            described.pop("parameters")  # which this message has no field for; the trailing metadata names the bundle
            return pb.ModelMetadataResponse(**described)

        return await self._answered("ModelMetadata", context, answer)

    async def ModelInfer(self, inference: Inference, context: Context) -> pb.ModelInferResponse:
        async def answer(call: Call) -> pb.ModelInferResponse:
            request = inference.request
            if request is None:
                raise BadRequest("the message is not a ModelInferRequest")
            model = self._serving.find(call, request.model_name, request.model_version or None)
            names = [output.name for output in request.outputs] or None
            tensors.outputs([], names)  # refuse an unknown output before the work, not after it
            inputs = _tensors(request, inference.raw)
            size = sum(map(len, inference.raw)) or request.ByteSize()
            with self._serving.door.admit(call), self._serving.door.bytes.hold(call.caller, size):
                clips = tensors.read_tensors(inputs, _parameters(request.parameters))
                transcripts = await self._serving.service.transcribe(call, model, clips)
            raw = bool(inference.raw)  # who sends raw tensors reads them too; Triton's client reads nothing else

            def written() -> pb.ModelInferResponse:
                return _response(request.id, call, model, tensors.outputs(transcripts, names), raw=raw)

            return await self._serving.write(call, transcripts, written)

        return await self._answered("ModelInfer", context, answer)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        async def answer(call: Call) -> pb.RepositoryModelLoadResponse:
            call.model = model = await self._load(_model_name(request), None)
            return pb.RepositoryModelLoadResponse(model_name=model.name, isLoaded=True)

        return await self._answered("RepositoryModelLoad", context, answer)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        async def answer(_: Call) -> pb.RepositoryModelUnloadResponse:
            self._unload(_model_name(request))
            return pb.RepositoryModelUnloadResponse(model_name=_model_name(request), isUnloaded=True)

        return await self._answered("RepositoryModelUnload", context, answer)

    async def _answered(
        self, method: str, context: Context, answer: Callable[[Call], Awaitable[Any]], *, guarded: bool = True
    ) -> Any:  # noqa: ANN401  (the method's own message)
        """What the edge does for HTTP: a Call, the door, the client's deadline, identity, log line, no surprises."""
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        door = self._serving.door
        call = door.open(headers.get, _peer(context), f"{_SERVICE}/{method}")
        status = 500
        try:
            if guarded:
                door.check(call, headers.get)
            left = context.time_remaining()
            if left is not None:
                call.timeout_seconds = min(call.timeout_seconds, max(left, 0.0))
            response = await answer(call)
            status = 200
        except PredictorError as error:
            refused(error)
            status, code = answers.status(error)
            context.set_trailing_metadata(_trailing(call, error))
            await context.abort(grpc.StatusCode[code], str(error))
        except asyncio.CancelledError:
            status = answers.CLIENT_CLOSED_REQUEST
            raise
        except grpc.aio.AbortError:
            raise
        except Exception:
            logger.exception("unforeseen error request_id=%s", call.id)
            await context.abort(grpc.StatusCode.INTERNAL, str(InferenceFailed()))
        else:
            context.set_trailing_metadata(_trailing(call))
            return response
        finally:
            door.close(call, "GRPC", method, status, quiet=not guarded and status == 200)  # noqa: PLR2004


class RpcServer:
    """The port, in the shape in which KServe's ModelServer starts and stops its own."""

    def __init__(self, servicer: Servicer, port: int, max_message_bytes: int, grace_seconds: float) -> None:
        self._servicer, self._port, self._grace_seconds = servicer, port, grace_seconds
        self._options = [
            ("grpc.max_receive_message_length", max_message_bytes + _OVERHEAD_BYTES),
            ("grpc.so_reuseport", 0),
        ]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve until stopped."""
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((_handlers(self._servicer),))
        self._server.add_insecure_port(f"0.0.0.0:{self._port}")
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self, _signal: int | None = None) -> None:
        if self._server:
            await self._server.stop(self._grace_seconds)


def _handlers(servicer: Servicer) -> grpc.GenericRpcHandler:
    """The service's methods, as the protocol file describes them, but for reading a ModelInferRequest."""
    described = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods = {}
    for method in described.methods:
        request, response = (getattr(pb, type_.name) for type_ in (method.input_type, method.output_type))
        read = Inference.read if request is pb.ModelInferRequest else request.FromString
        answer = getattr(servicer, method.name)
        methods[method.name] = grpc.unary_unary_rpc_method_handler(answer, read, response.SerializeToString)
    return grpc.method_handlers_generic_handler(described.full_name, methods)


def _model_name(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> str:
    """KServe's message holds the model's name in field 1; Triton's holds a repository's there, and the name in 2."""
    second = (field.data for field in UnknownFieldSet(request) if field.field_number == 2)  # noqa: PLR2004
    name = next(second, b"")
    return name.decode("utf-8", "replace") if isinstance(name, bytes) and name else str(request.model_name)


def _tensors(request: pb.ModelInferRequest, raw: list[memoryview]) -> list[Tensor]:
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"{len(request.inputs)} inputs came with {len(raw)} raw_input_contents; there must be as many")
    return [
        Tensor(
            tensor.name,
            tensor.datatype,
            _shape(tensor.shape),
            None if raw else _values(tensor.contents),
            raw[number] if raw else None,
            _parameters(tensor.parameters),
        )
        for number, tensor in enumerate(request.inputs)
    ]


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if any(size < 0 for size in shape):
        raise BadRequest("a shape has a negative dimension")
    return tuple(shape)


def _values(contents: pb.InferTensorContents) -> Sequence[Any]:
    """Whichever list of a tensor's contents is filled; files as a list, which a message's field is not."""
    if contents.bytes_contents:
        return list(contents.bytes_contents)
    lists = (getattr(contents, f"{kind}_contents") for kind in _CONTENTS)
    return next((values for values in lists if len(values)), ())


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in parameters.items()
    }


def _response(
    request_id: str, call: Call, model: Model, outputs: list[OutputTensor], *, raw: bool
) -> pb.ModelInferResponse:
    identity = {"bundle_digest": model.digest, "request_id": call.id}
    return pb.ModelInferResponse(
        model_name=model.name,
        model_version=model.version,
        id=request_id or call.id,
        parameters={name: pb.InferParameter(string_param=value) for name, value in identity.items()},
        outputs=[_output(tensor, raw=raw) for tensor in outputs],
        raw_output_contents=[v2.raw_bytes(tensor) for tensor in outputs] if raw else None,
    )


def _output(tensor: OutputTensor, *, raw: bool) -> pb.ModelInferResponse.InferOutputTensor:
    if raw:
        contents = None
    elif tensor.datatype == "BYTES":
        contents = pb.InferTensorContents(bytes_contents=[str(value).encode() for value in tensor.values])
    else:
        contents = pb.InferTensorContents(fp64_contents=tensor.values)
    return pb.ModelInferResponse.InferOutputTensor(
        name=tensor.name, datatype=tensor.datatype, shape=[len(tensor.values)], contents=contents
    )


def _trailing(call: Call, error: PredictorError | None = None) -> tuple[tuple[str, str], ...]:
    retry = getattr(error, "retry_after_seconds", None)
    return (*call.identity(), *((("retry-after", str(retry)),) if retry else ()))


def _peer(context: Context) -> str:
    """ "ipv4:10.0.0.7:51234" without the port: one caller has many connections."""
    return context.peer().rpartition(":")[0].partition(":")[2] or "unknown"
