"""A receiver of OpenTelemetry traces: OTLP over gRPC, as a collector speaks it, in this process and in memory."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

ERROR = 2  # of opentelemetry.proto.trace.v1.Status.StatusCode


@dataclass(frozen=True)
class Span:
    """What was sent of one span. Ids are in hexadecimal; `parent_id` is "" for a root, `status` 0 (unset) or ERROR."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    started_ns: int
    ended_ns: int
    attributes: dict[str, str | int | float | bool]
    status: int
    trace_state: str
    resource: dict[str, str | int | float | bool]


class Receiver(rpc.TraceServiceServicer):
    """`refuse` makes it answer UNAVAILABLE, as a collector that is overloaded; `hang` makes it never answer."""

    def __init__(self) -> None:
        self.address = ""
        self.calls = 0
        self.refuse = False
        self.hang: Event | None = None
        self._spans: list[Span] = []
        self._lock = Lock()

    def Export(self, request, context):  # noqa: N802  # the name of the RPC
        self.calls += 1
        if self.hang is not None:
            self.hang.wait()
        if self.refuse:
            context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
        with self._lock:
            self._spans += _read(request)
        return service.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def wait(self, count: int, seconds: float = 10) -> list[Span]:
        """The spans, once there are `count` of them."""
        deadline = time.monotonic() + seconds
        while len(self.spans) < count:
            assert time.monotonic() < deadline, f"{len(self.spans)} of {count} spans after {seconds} s"
            time.sleep(0.01)
        return self.spans


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of this machine; `address` is what OTEL_EXPORTER_OTLP_ENDPOINT wants."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4))
    rpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        if receiver.hang is not None:
            receiver.hang.set()
        server.stop(None).wait()


def _read(request) -> list[Span]:
    return [
        Span(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            kind=span.kind,
            started_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            attributes=_values(span.attributes),
            status=span.status.code,
            trace_state=span.trace_state,
            resource=_values(resource.resource.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _values(pairs) -> dict[str, str | int | float | bool]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
