"""What an operator sees, read back through a real OTLP receiver and a real Prometheus."""

import json
import struct
from itertools import pairwise

import grpc
import otlp
import prometheus
import pytest
from asking import INFER, MODEL, audio, long_file, pcm, v2, wav
from serving import serving, until

STAGES = ["decode", "features", "queue", "infer", "search"]  # in the order of time
SERVER_KIND = 2
LARGE_BYTES = 200_000  # above what asyncio's transport takes in one read
REQUESTS = 6


def trace_of(number: int) -> tuple[str, str]:
    """Trace id and parent span id of a caller."""
    return f"{0xC0FFEE:026x}{number:06x}", f"{0xBEEF:010x}{number:06x}"


def traceparent(number: int, flags: str = "01") -> str:
    trace_id, span_id = trace_of(number)
    return f"00-{trace_id}-{span_id}-{flags}"


@pytest.fixture(scope="module")
def receiver():
    with otlp.receiving() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory, receiver):
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(tmp_path_factory.mktemp("server") / "log", environment, cache_mb=1) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as open_client:
        yield open_client


def tree(receiver: otlp.Receiver, number: int) -> tuple[otlp.Span, list[otlp.Span]]:
    """The span of the request that a caller's trace led to, and those below it."""
    trace_id, parent_id = trace_of(number)

    def found() -> list[otlp.Span]:
        return [span for span in receiver.spans if span.trace_id == trace_id]

    until(lambda: any(span.parent_id == parent_id for span in found()), seconds=10)
    spans = found()
    (root,) = [span for span in spans if span.parent_id == parent_id]
    below = [span for span in spans if span is not root]
    assert all(span.parent_id == root.span_id for span in below)
    return root, below


def test_each_of_many_large_requests_on_one_connection_has_a_tree_of_its_own(client, receiver, recognizer):
    """A connection's context would be that of an earlier request, after a large body (CPython issue 140947)."""
    large = wav(pcm("vi")) + bytes(LARGE_BYTES)
    for number in range(REQUESTS):
        headers = {"traceparent": traceparent(number), "X-Request-Id": f"traced-{number}"}
        body = v2(large[: len(large) - number])  # or the cache would answer
        assert client.post(INFER, json=body, headers=headers).status_code == 200
    for number in range(REQUESTS):
        root, below = tree(receiver, number)
        assert (root.name, root.kind, root.status) == ("POST /v2/models/{model_name}/infer", SERVER_KIND, 0)
        assert root.attributes["http.response.status_code"] == 200
        assert root.attributes["http.route"] == "/v2/models/{model_name}/infer"
        assert root.resource["service.name"] == "vani-predictor"
        assert sorted(span.name for span in below) == sorted(STAGES)
        ordered = sorted(below, key=lambda span: STAGES.index(span.name))
        assert all(a.ended_ns <= b.started_ns + 1_000 for a, b in pairwise(ordered))
        assert root.started_ns <= ordered[0].started_ns
        assert ordered[-1].ended_ns <= root.ended_ns


def test_a_long_recording_has_a_span_for_every_window(client, receiver):
    headers = {"traceparent": traceparent(100)}
    client.post("/transcribe", files={"file": long_file(70)}, headers=headers)
    root, below = tree(receiver, 100)
    assert root.name == "POST /transcribe"
    names = [span.name for span in below]
    assert names.count("decode") == 1
    assert names.count("infer") == names.count("search") == names.count("queue") >= 3


def test_a_trace_goes_through_transcribe_and_back_to_the_caller(client):
    trace_id, _ = trace_of(101)
    headers = {"traceparent": traceparent(101)}
    assert client.post("/transcribe", files={"file": audio("vi")}, headers=headers).json()["trace_id"] == trace_id


def test_a_trace_that_its_caller_does_not_sample_is_not_sent(client, receiver):
    client.post("/transcribe", files={"file": audio("vi")}, headers={"traceparent": traceparent(102, "00")})
    client.post("/transcribe", files={"file": audio("hi")}, headers={"traceparent": traceparent(103)})
    tree(receiver, 103)
    assert not [span for span in receiver.spans if span.trace_id == trace_of(102)[0]]


def test_a_refusal_is_traced_and_only_ours_is_an_error(client, receiver):
    client.post(INFER, json={}, headers={"traceparent": traceparent(104)})
    late = {"traceparent": traceparent(105), "X-Request-Timeout": "1ms"}
    client.post(INFER, json=v2(long_file(70)), headers=late)
    refused, _ = tree(receiver, 104)
    assert (refused.attributes["http.response.status_code"], refused.status) == (400, 0)
    missed, _ = tree(receiver, 105)
    assert (missed.attributes["http.response.status_code"], missed.status) == (504, otlp.ERROR)


@pytest.fixture(scope="module")
def rpc(server, receiver, kserve):
    """The tree of one call over gRPC."""
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    data = wav(pcm("hi")[:-5])
    asked = pb.ModelInferRequest(
        model_name=MODEL,
        inputs=[{"name": "audio", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[struct.pack("<I", len(data)) + data],
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        GRPCInferenceServiceStub(channel).ModelInfer(asked, metadata=[("traceparent", traceparent(106))])
    return tree(receiver, 106)


def test_a_grpc_call_has_the_same_tree(rpc):
    root, below = rpc
    assert (root.kind, root.status) == (SERVER_KIND, 0)
    assert sorted(span.name for span in below) == sorted(STAGES)
    assert (root.attributes["rpc.system.name"], root.attributes["rpc.method"]) == ("grpc", "ModelInfer")


def test_a_grpc_call_is_named_after_its_method(rpc):
    root, _ = rpc
    assert root.name == "inference.GRPCInferenceService/ModelInfer"


def test_two_on_two_connections_do_not_mix(server, receiver):
    with server.client() as first, server.client() as second:
        for number in (200, 202):
            for offset, asker in enumerate((first, second)):
                headers = {"traceparent": traceparent(number + offset)}
                asker.post("/transcribe", files={"file": wav(pcm("vi")[number + offset :])}, headers=headers)
    for number in range(200, 204):
        _, below = tree(receiver, number)
        assert sorted(span.name for span in below) == sorted(STAGES)


def test_no_span_holds_what_was_said(client, receiver, recognizer):
    client.post("/transcribe", files={"file": audio("vi")}, headers={"traceparent": traceparent(107)})
    tree(receiver, 107)
    sent = json.dumps([[span.name, span.attributes] for span in receiver.spans], ensure_ascii=False)
    for word in recognizer.transcribe(audio("vi")).text.split():
        assert f" {word}" not in sent
        assert f'"{word}' not in sent


def test_the_log_line_and_the_span_have_one_trace_id(client, server, receiver):
    trace_id, _ = trace_of(108)
    client.post("/transcribe", files={"file": audio("hi")}, headers={"traceparent": traceparent(108)})
    until(lambda: server.log_lines(f"trace_id={trace_id}"))
    assert tree(receiver, 108)[0].trace_id == trace_id


@pytest.mark.service
@pytest.mark.skipif(prometheus.BINARY is None, reason="there is no prometheus on PATH")
def test_prometheus_scrapes_the_server_and_answers(server, client, recognizer, tmp_path):
    host = server.address.removeprefix("http://")
    with prometheus.scraping(tmp_path, host) as running:
        running.wait('up{job="vani"} == 1')
        client.post(INFER, json=v2(audio("vi"), language="vi"))
        client.post(INFER, json={})
        client.post(INFER, json=v2(long_file(70)), headers={"X-Request-Timeout": "1ms"})
        running.wait('vani_asr_requests_total{route="/v2/models/{model_name}/infer",status="400"} > 0')
        wanted = {
            'sum(vani_asr_requests_total{route="/v2/models/{model_name}/infer",status="200",language="vi"}) > 0',
            'histogram_quantile(0.99, sum by (le) (vani_asr_request_seconds_bucket{route!=""})) > 0',
            'vani_asr_refused_requests_total{reason="deadline"} > 0',
            'sum(vani_asr_audio_seconds_total{language="vi"}) > 2',
            "sum(vani_asr_batch_frames_total) / sum(vani_asr_batch_padded_frames_total) <= 1",
            "vani_asr_batch_rows_count > 0",
            "sum(vani_asr_cache_lookups_total) > 0",
            "vani_asr_real_time_factor_count > 0",
            f'vani_asr_bundle_info{{model="{MODEL}",version="1",digest="{recognizer.bundle.digest}"}} == 1',
            "vani_asr_load_seconds > 0",
            f'vani_asr_confidence_count{{digest="{recognizer.bundle.digest}",language="vi"}} > 0',
            f'vani_asr_script_share_sum{{digest="{recognizer.bundle.digest}",language="vi"}} > 0',
            f'vani_asr_characters_per_second_count{{digest="{recognizer.bundle.digest}"}} > 0',
            f'transcription_count_total{{model="{MODEL}",status="success"}} > 0',
            'http_requests_total{method="POST",status="200"} > 0',
            f'model_loading_time_seconds_count{{model="{MODEL}"}} == 1',
            "process_resident_memory_bytes > 1e7",
            *(f'vani_asr_stage_seconds_count{{stage="{stage}"}} > 0' for stage in STAGES),
        }
        for promql in wanted:
            assert running.wait(promql), promql
        # Gauges are there, and back at zero.
        for gauge in ("vani_asr_pending_requests", "vani_asr_audio_seconds_in_flight", "inference_in_progress"):
            running.wait(f"{gauge} == 0")
