"""predictor.tracing: what a real OTLP receiver gets of a request, and that without one nothing is lost but traces."""

import logging
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from otlp import ERROR, receiving

from predictor import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SERVER, INTERNAL = 2, 1  # span kinds
SECRET = "số thẻ của tôi là 4111"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No OTEL_ variable of whoever runs the tests, and no traces left on."""
    for name in [name for name in tracing.os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr(tracing, "_quieten", _quieten_anew(tracing._quieten))
    yield
    tracing.shutdown()


def _quieten_anew(quieten):
    """A log that may complain at once, whatever a test before has complained about."""

    def anew():
        logging.getLogger("opentelemetry").handlers.clear()
        quieten()

    return anew


@pytest.fixture
def log():
    """The lines that a process's log would have. (pytest's own `caplog` also hears loggers that do not propagate.)"""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def receiver(monkeypatch):
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        assert tracing.configure()
        yield receiver
        tracing.shutdown()


def _sent(receiver):
    """What the receiver has once all is flushed, by name."""
    tracing.shutdown()
    spans = receiver.spans
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def test_stages_are_children_of_the_request_and_the_request_is_a_child_of_its_caller(receiver):
    trace = tracing.begin(CALLER, "POST")
    start = time.perf_counter()
    for number, name in enumerate(("decode", "queue", "infer", "search")):
        trace.stage(name, start + number / 8, start + number / 8 + 0.0625, rows=number)
    trace.end(200, route="/v2/models/{model_name}/infer", language="vi")
    spans = _sent(receiver)
    request = spans.pop("POST /v2/models/{model_name}/infer")
    assert (request.trace_id, request.parent_id, request.kind) == (TRACE, PARENT, SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model_name}/infer",
        "http.response.status_code": 200,
        "vani.language": "vi",
    }
    assert request.resource["service.name"] == "vani-predictor"
    assert list(spans) == ["decode", "queue", "infer", "search"]
    assert {(s.trace_id, s.parent_id, s.kind) for s in spans.values()} == {(TRACE, request.span_id, INTERNAL)}
    assert [s.attributes for s in spans.values()] == [{"vani.rows": number} for number in range(4)]
    assert [s.ended_ns - s.started_ns for s in spans.values()] == pytest.approx([62_500_000] * 4, abs=1000)
    assert spans["search"].started_ns - spans["decode"].started_ns == pytest.approx(375_000_000, abs=1000)
    assert abs(spans["decode"].started_ns - request.started_ns) < 1e9  # the times of day, not of the process
    assert abs(request.started_ns - time.time_ns()) < 60e9


def test_the_answer_names_the_requests_own_span(receiver):
    trace = tracing.begin(CALLER, "POST")
    trace.end(200)
    (span,) = _sent(receiver).values()
    assert trace.traceparent() == f"00-{TRACE}-{span.span_id}-01"
    assert (trace.trace_id, trace.sampled, span.name) == (TRACE, True, "POST")


@pytest.mark.parametrize(
    "headers",
    [
        CALLER | {"tracestate": "vendor=opaque"},
        {name.encode(): value.encode() for name, value in CALLER.items()} | {b"tracestate": b"vendor=opaque"},
        (CALLER | {"tracestate": "vendor=opaque"}).get,
    ],
    ids=["text", "bytes", "function"],
)
def test_the_callers_headers_are_read_from_every_protocol(receiver, headers):
    tracing.begin(headers, "grpc").end(200, rpc_system="grpc", rpc_method="ModelInfer", rpc_status="OK")
    (span,) = _sent(receiver).values()
    assert (span.trace_id, span.parent_id, span.trace_state) == (TRACE, PARENT, "vendor=opaque")
    assert span.attributes == {"rpc.system.name": "grpc", "rpc.method": "ModelInfer", "rpc.response.status_code": "OK"}


def test_a_request_of_another_trace_in_the_ambient_context_is_not_the_parent(receiver):
    from opentelemetry import context, trace

    other = trace.SpanContext(7, 7, is_remote=True, trace_flags=trace.TraceFlags(1))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(other)))
    try:
        for headers in ({}, CALLER):
            request = tracing.begin(headers, "POST")
            request.stage("infer", 0, 1)
            request.end(200)
    finally:
        context.detach(token)
    tracing.shutdown()
    roots = [span for span in receiver.spans if span.kind == SERVER]
    assert sorted(span.parent_id for span in roots) == ["", PARENT]
    assert {span.parent_id for span in receiver.spans if span.kind == INTERNAL} == {span.span_id for span in roots}


def test_what_the_caller_does_not_sample_is_not_sent_and_keeps_its_id(receiver):
    trace = tracing.begin({"traceparent": f"00-{TRACE}-{PARENT}-00"}, "POST")
    trace.stage("infer", 0, 1)
    trace.end(500)
    assert _sent(receiver) == {}
    assert (trace.trace_id, trace.sampled, trace.traceparent()[-3:]) == (TRACE, False, "-00")


@pytest.mark.parametrize(("sampler", "argument", "sent"), [("always_off", "", 0), ("parentbased_traceidratio", "0", 1)])
def test_the_sampler_is_the_environments(monkeypatch, sampler, argument, sent):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.address)
        assert tracing.configure()
        for headers in ({}, CALLER):
            tracing.begin(headers, "POST").end(200)
        assert [span.trace_id for span in _sent(receiver).values()] == [TRACE] * sent


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"OTEL_SERVICE_NAME": "asr"}, "asr"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,k8s.pod.name=p-0"}, "other"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "k8s.pod.name=p-0"}, "vani-predictor"),
    ],
)
def test_the_service_is_named_by_the_environment(monkeypatch, variables, name):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        tracing.configure()
        tracing.begin({}, "GET").end(200)
        (span,) = _sent(receiver).values()
    assert span.resource["service.name"] == name
    assert ("k8s.pod.name" in span.resource) == ("OTEL_RESOURCE_ATTRIBUTES" in variables)


def test_stages_of_many_threads_and_requests_end_up_where_they_belong(receiver):
    traces = [tracing.begin({}, "POST") for _ in range(8)]

    def record(number):
        for index in range(25):
            for owner, trace in enumerate(traces):
                trace.stage("infer", index, index + 1, thread=number, owner=owner)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(8)))
    for owner, trace in enumerate(traces):
        trace.end(200, owner=owner)
    tracing.shutdown()
    spans = receiver.spans
    assert len(spans) == 8 + 8 * 8 * 25
    requests = {span.span_id: span for span in spans if span.kind == SERVER}
    for span in spans:
        if span.kind == INTERNAL:
            parent = requests[span.parent_id]
            assert (parent.trace_id, parent.attributes["vani.owner"]) == (span.trace_id, span.attributes["vani.owner"])


def test_a_request_that_is_never_ended_is_never_sent(receiver):
    tracing.begin({}, "GET")
    assert _sent(receiver) == {}


@pytest.mark.parametrize(("status", "code"), [(200, 0), (404, 0), (499, 0), (500, ERROR), (503, ERROR)])
def test_only_our_own_failures_are_errors(receiver, status, code):
    trace = tracing.begin({}, "POST")
    trace.end(status)
    trace.end(200)  # too late
    (span,) = _sent(receiver).values()
    assert (span.status, span.attributes["http.response.status_code"]) == (code, status)
    assert span.attributes.get("error.type") == (str(status) if code else None)


@pytest.mark.parametrize("name", [f"POST /{SECRET}", f"BREW /{SECRET}"])
def test_nothing_that_was_said_or_named_by_a_caller_is_sent(receiver, log, name):
    headers = CALLER | {"tracestate": SECRET, "x-file": SECRET}
    trace = tracing.begin(headers, name)
    trace.stage("decode", 0, 1, text=SECRET, file=SECRET, frames=3)
    trace.end(200, text=SECRET, language="v" * 1000)
    spans = _sent(receiver)
    assert SECRET not in repr(spans)
    assert log == []
    assert set(spans) == {"decode", "POST" if name.startswith("POST") else "HTTP"}
    assert spans.pop("decode").attributes == {"vani.frames": 3}
    (request,) = spans.values()
    assert request.attributes["vani.language"] == "v" * 128
    assert request.trace_state == ""


INVALID = [
    "",
    "garbage",
    f"00-{TRACE}",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01\n",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01-more",
]


@pytest.mark.parametrize("traceparent", INVALID)
def test_a_traceparent_that_is_invalid_starts_a_trace_of_its_own(receiver, traceparent):
    trace = tracing.begin({"traceparent": traceparent}, "POST")
    trace.end(200)
    (span,) = _sent(receiver).values()
    assert (span.parent_id, span.trace_id) == ("", trace.trace_id)
    off = tracing.begin({"traceparent": traceparent}, "POST")
    for made in (trace.trace_id, off.trace_id):
        assert re.fullmatch("[0-9a-f]{32}", made)
        assert made not in (TRACE, "0" * 32)


def test_a_traceparent_of_a_later_version_is_understood_as_far_as_it_goes(receiver):
    tracing.begin({"traceparent": f"01-{TRACE}-{PARENT}-01-more"}, "POST").end(200)
    (span,) = _sent(receiver).values()
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)


@given(value=st.text(max_size=80) | st.from_regex(tracing._TRACEPARENT), state=st.text(max_size=600))
def test_any_headers_are_read_or_passed_over(value, state):
    for headers in ({"traceparent": value, "tracestate": state}, {b"traceparent": value.encode("utf-8", "replace")}):
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", tracing.begin(headers, "POST").traceparent())


def test_where_traces_are_off_the_callers_ids_are_kept_and_new_ones_differ():
    assert not tracing.configure()
    trace = tracing.begin(CALLER, "POST")
    trace.stage("infer", 0, 1, rows=1)
    trace.end(500, route="/")
    assert (trace.trace_id, trace.traceparent()) == (TRACE, CALLER["traceparent"])
    assert len({tracing.begin({}, "POST").trace_id for _ in range(1000)}) == 1000


def test_where_traces_are_off_they_cost_less_than_a_microsecond_a_stage():
    trace = tracing.begin(CALLER, "POST")

    def thousand():
        started = time.perf_counter()
        for _ in range(1000):
            trace.stage("infer", 0.0, 1.0, rows=1, frames=300)
        return time.perf_counter() - started

    assert min(thousand() for _ in range(20)) < 1e-3


def test_where_traces_are_off_opentelemetry_is_not_imported():
    code = "import sys; from predictor import tracing; tracing.configure(); tracing.begin({}, 'GET').end(200); "
    code += "tracing.shutdown(); print('opentelemetry' in sys.modules, 'grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}


@pytest.mark.parametrize(
    ("variables", "on", "complaint"),
    [
        ({}, False, ""),
        (ENDPOINT, True, ""),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True, ""),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4317"}, False, ""),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, ""),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, True, ""),
        ({"OTEL_TRACES_EXPORTER": ""} | ENDPOINT, True, ""),
        ({"OTEL_TRACES_EXPORTER": "none"} | ENDPOINT, False, ""),
        ({"OTEL_SDK_DISABLED": "TRUE"} | ENDPOINT, False, ""),
        ({"OTEL_SDK_DISABLED": "false"} | ENDPOINT, True, ""),
        ({"OTEL_TRACES_EXPORTER": "jaeger"} | ENDPOINT, False, "jaeger"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"} | ENDPOINT, False, "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"} | ENDPOINT, False, "soon"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"} | ENDPOINT, True, "sometimes"),
    ],
)
def test_traces_are_on_when_the_environment_asks_for_what_is_there(monkeypatch, log, variables, on, complaint):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.configure() is on
    assert tracing.configure() is on
    assert [complaint in line for line in log] == [True] * (complaint != "") * (2 - on)


def test_spans_can_be_written_to_the_console(monkeypatch, capsys):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert tracing.configure()
    tracing.begin(CALLER, "POST").end(200)
    tracing.shutdown()
    assert f'"trace_id": "0x{TRACE}"' in capsys.readouterr().out


def _used(seconds):
    """Requests for a while, and the slowest of them."""
    slowest, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        trace = tracing.begin(CALLER, "POST")
        trace.stage("infer", started, started + 1)
        trace.end(200)
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.001)
    return slowest


@pytest.fixture
def silent():
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _endpoint(kind, silent, receiver):
    receiver.refuse = kind == "refusing"
    receiver.hang = threading.Event() if kind == "hanging" else None
    return {"closed": "http://127.0.0.1:1", "silent": silent}.get(kind, receiver.address)


@pytest.mark.parametrize("kind", ["closed", "silent", "refusing", "hanging"])
def test_a_collector_that_is_down_costs_requests_nothing_and_the_log_a_line(monkeypatch, log, silent, kind):
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", _endpoint(kind, silent, receiver))
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")  # which overflows
        monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.5)
        assert tracing.configure()
        assert _used(0.7) < 0.25
        started = time.perf_counter()
        tracing.shutdown()
        assert time.perf_counter() - started < 1
        for thread in threading.enumerate():
            if thread.name in ("traces", "OtelBatchSpanRecordProcessor"):
                thread.join(5)
                assert not thread.is_alive()
    assert 1 <= len(log) <= 2, log  # that the collector does not answer, and that the last spans were not sent


def test_a_process_ends_although_its_collector_hangs():
    code = """
        from predictor import tracing
        assert tracing.configure()
        tracing.begin({}, "POST").end(200)
        tracing.shutdown()
    """
    with receiving() as receiver:
        receiver.hang = threading.Event()
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert time.perf_counter() - started < tracing.FLUSH_SECONDS + 5  # of which most is the interpreter's start
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_spans_follow_when_the_collector_comes_back(monkeypatch):
    with receiving() as receiver:
        receiver.refuse = True
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        assert tracing.configure()
        tracing.begin(CALLER, "POST").end(200)
        while not receiver.calls:
            time.sleep(0.01)
        receiver.refuse = False
        assert receiver.wait(1)[0].trace_id == TRACE
