"""One request as OpenTelemetry spans, sent by OTLP over gRPC: request -> decode, features, queue, infer, search.

The only door to opentelemetry, which is imported when the environment asks for traces and not before.

Whose child a span is, is always said and never taken from the ambient context: on a connection that is kept alive that
context is, after a large body, the one of an earlier request (CPython issue 140947).

Stages are recorded when they are over, with the times at which they happened: they run in threads and batches that no
`with` block could stand around.

Attributes hold numbers, and strings only under the names of `_TEXTUAL`: never what was said, or who said it.
"""

import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPMethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Headers = Mapping[bytes, bytes] | Mapping[str, str] | Callable[[str], str | None]
Attribute = str | int | float

SERVICE_NAME = "vani-predictor"
FLUSH_SECONDS = 2.0  # what the end of the process may wait for a collector: less than a pod's grace period by far
QUIET_SECONDS = 60.0  # between two complaints about one

# W3C Trace Context: version, trace id, parent id, flags; later versions may append. Ids are not all zeros.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_TRACESTATE = 512  # characters that the standard asks a system to keep; an attacker may send 64 KiB
_METHODS = frozenset(HTTPMethod.__members__)
_SERVER_ERROR = 500

# Our names -> OpenTelemetry's semantic conventions; all others are ours, as vani.*
_NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "rpc_method": "rpc.method",
    "rpc_status": "rpc.response.status_code",
    "rpc_system": "rpc.system.name",
}
_TEXTUAL = frozenset({*_NAMES, "bundle", "cache", "digest", "language", "model", "request_id", "version"})
_MAX_TEXT = 128

logger = logging.getLogger("vani.tracing")


@dataclass(frozen=True, slots=True)
class _Export:
    tracer: "Tracer"
    provider: "TracerProvider"
    exporters: "list[SpanExporter]"


_export: _Export | None = None


class Trace:
    """One request's span, and its stages. Safe to use from any thread; costs next to nothing where traces are off.

    `trace_id` is the caller's, or a new one: 32 hexadecimal digits, whether traces are on or off.
    """

    __slots__ = ("_context", "_offset_ns", "_open", "_span_id", "_tracer", "_verb", "sampled", "trace_id")

    def __init__(self, trace_id: str, span_id: str, *, sampled: bool) -> None:
        self.trace_id, self._span_id, self.sampled = trace_id, span_id, sampled
        self._tracer: Tracer | None = None
        self._context: Context | None = None
        self._open: Span | None = None
        self._verb, self._offset_ns = "", 0

    def record(self, tracer: "Tracer", span: "Span", context: "Context", verb: str) -> "Trace":
        """From now on, to `tracer`: stages below `span`, which `context` holds."""
        self._tracer, self._open, self._context, self._verb = tracer, span, context, verb
        self._offset_ns = time.time_ns() - time.perf_counter_ns()
        return self

    def stage(self, name: str, started: float, ended: float, **attributes: Attribute) -> None:
        """Record a child span that is over; `started` and `ended` are readings of `time.perf_counter`."""
        if self._tracer is None:
            return
        begin, end = (round(reading * 1e9) + self._offset_ns for reading in (started, ended))
        span = self._tracer.start_span(name, self._context, attributes=_attributes(attributes), start_time=begin)
        span.end(end)

    def end(self, status: int, **attributes: Attribute) -> None:
        """End the request's span; what comes after the first call is ignored. `status` is HTTP's for every protocol.

        With `route`, the span is named after it: a path is the caller's choice and a route is not. A span that is never
        ended is never sent, which is how probes are left out.
        """
        span, self._open = self._open, None
        if span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        if route := attributes.get("route"):
            span.update_name(f"{self._verb} {route}")
        span.set_attributes(_attributes(attributes))
        if "rpc_method" not in attributes:
            span.set_attribute("http.response.status_code", status)
        if status >= _SERVER_ERROR:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def traceparent(self) -> str:
        """The header for whom this request calls or answers. Where traces are off, the caller's parent id goes on."""
        return f"00-{self.trace_id}-{self._span_id}-{self.sampled:02x}"


def begin(headers: Headers, name: str) -> Trace:
    """The Trace of a request that arrived now, below its caller's span if `headers` (names in lower case) hold one.

    `name` is a method, and whatever follows it after a space is left out.
    """
    given = _header(headers, "traceparent")
    caller = _TRACEPARENT.fullmatch(given) if given else None
    if caller and caller[5] and caller[1] == "00":
        caller = None
    if _export is not None:
        return _start(_export, caller, _header(headers, "tracestate"), name)
    if caller:
        return Trace(caller[2], caller[3], sampled=bool(int(caller[4], 16) & 1))
    return Trace(f"{random.getrandbits(128) or 1:032x}", f"{random.getrandbits(64) or 1:016x}", sampled=False)


def configure() -> bool:
    """Turn traces on if the environment says so, in OpenTelemetry's own variables; returns whether they are on.

    OTEL_TRACES_EXPORTER (otlp, console, none), or else an OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT, turns them on, and
    OTEL_SDK_DISABLED off; sampler, service name, resource, batches and certificates are read by OpenTelemetry itself.
    What cannot be is logged, and traces stay off: a server without traces is better than none.
    """
    global _export  # noqa: PLW0603  # one export for the process
    if _export is None:
        kinds = _asked()
        try:
            _export = _build(kinds) if kinds else None
        except Exception as error:  # whatever the SDK makes of its variables  # noqa: BLE001
            logger.error("traces are off: %s", error)  # noqa: TRY400  # the sentence says it
    return _export is not None


def shutdown() -> None:
    """Send what is left, for FLUSH_SECONDS at most, and turn traces off."""
    global _export
    export, _export = _export, None
    if export is None:
        return
    flush = threading.Thread(target=export.provider.shutdown, name="traces", daemon=True)
    flush.start()
    flush.join(FLUSH_SECONDS)
    if flush.is_alive():
        logger.warning("the last traces could not be sent within %g s", FLUSH_SECONDS)
        for exporter in export.exporters:
            exporter.shutdown()  # ends a call that hangs, and the pause before the next


def _header(headers: Headers, name: str) -> str:
    if callable(headers):
        return headers(name) or ""
    found = headers.get(name) or headers.get(name.encode())  # type: ignore[call-overload]
    return found.decode("latin-1") if isinstance(found, bytes) else found or ""


def _start(export: _Export, caller: re.Match[str] | None, state: str, name: str) -> Trace:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState, set_span_in_context

    context = Context()  # empty, and not None: that would be the ambient one
    if caller:
        given = TraceState.from_header([state] if len(state) <= _MAX_TRACESTATE else [])
        flags = TraceFlags(int(caller[4], 16))
        remote = SpanContext(int(caller[2], 16), int(caller[3], 16), True, flags, given)
        context = set_span_in_context(NonRecordingSpan(remote), context)
    verb, space, _ = name.partition(" ")
    attributes: dict[str, Attribute] = {"method": verb} if verb in _METHODS else {}
    verb = verb if attributes or not space else "HTTP"
    span = export.tracer.start_span(verb, context, SpanKind.SERVER, _attributes(attributes))
    own = span.get_span_context()
    trace = Trace(f"{own.trace_id:032x}", f"{own.span_id:016x}", sampled=own.trace_flags.sampled)
    if not span.is_recording():
        return trace
    return trace.record(export.tracer, span, set_span_in_context(span, Context()), verb)


def _attributes(given: dict[str, Attribute]) -> dict[str, Attribute]:
    return {
        _NAMES.get(name, f"vani.{name}"): value[:_MAX_TEXT] if isinstance(value, str) else value
        for name, value in given.items()
        if not isinstance(value, str) or name in _TEXTUAL
    }


def _asked() -> list[str]:
    """The exporters that the environment asks for; none where it asks for what is not here."""
    environment = {name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")}
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "otlp" if any(environment.get(name) for name in endpoints) else "none"
    kinds = [kind.strip() for kind in (environment.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    if unknown := set(kinds) - {"otlp", "console", "none"}:
        logger.error("traces are off: OTEL_TRACES_EXPORTER may be otlp, console or none, not %s", min(unknown)[:40])
        return []
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name] for name in protocols if environment.get(name)), "grpc")
    if "otlp" in kinds and protocol != "grpc":
        logger.error("traces are off: OTLP is sent over grpc here, not over %s", protocol[:40])
        return []
    return [] if "none" in kinds else kinds


def _build(kinds: list[str]) -> _Export:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    _quieten()
    resource = Resource.create({"service.name": SERVICE_NAME}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `shutdown` is bounded, theirs is not
    exporters: list[SpanExporter] = []
    for kind in kinds:
        if kind == "console":
            exporters.append(ConsoleSpanExporter(out=sys.stdout))
        else:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            exporters.append(OTLPSpanExporter())
        provider.add_span_processor(BatchSpanProcessor(exporters[-1]))
    return _Export(provider.get_tracer("vani"), provider, exporters)


class _Seldom(logging.Handler):
    """What OpenTelemetry has to say of a collector that does not answer: one sentence in QUIET_SECONDS. What it says of
    a caller's headers is left out, because it quotes them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._quiet_until and record.name.startswith(("opentelemetry.exporter", "opentelemetry.sdk")):
            self._quiet_until = now + QUIET_SECONDS
            logger.warning("traces: %s", record.getMessage())


def _quieten() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    if not any(isinstance(handler, _Seldom) for handler in theirs.handlers):
        theirs.addHandler(_Seldom())
