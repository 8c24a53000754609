"""A server that goes on: clients that leave, too much at once, too little time; and its end, which loses nothing."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import httpx
import numpy as np
import pytest
from asking import INFER, MODEL, audio, long_file, pcm, text64, v2, wav
from serving import Server, serving, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

MAX_REQUESTS = 12
MAX_AUDIO_SECONDS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One engine thread, and a queue that is soon full."""
    limits = {"engine_threads": 1, "max_pending_requests": MAX_REQUESTS, "max_pending_audio_seconds": MAX_AUDIO_SECONDS}
    with serving(tmp_path_factory.mktemp("server") / "log", **limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as open_client:
        yield open_client


@pytest.fixture(autouse=True)
def _idle(server):
    yield
    until(server.idle)
    assert not server.log_lines("Traceback")


def together(count: int, ask: Callable[[int], object]) -> list:
    """What `count` callers get who ask at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


@contextmanager
def busy(server: Server, count: int, seconds: float) -> Iterator[None]:
    """While `count` callers send long recordings, each one after the other."""
    ended = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not ended.is_set():
                client.post("/transcribe", files={"file": long_file(seconds)})

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: server.metric("vani_asr_audio_seconds_in_flight") > seconds)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def request(body: bytes, path: str = INFER, **headers: str) -> bytes:
    """As it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: vani", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def gone(server: Server, content: bytes, count: int) -> list[socket.socket]:
    """Connections on which something was sent."""
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
    for connection in connections:
        connection.sendall(content)
    return connections


def reset(connection: socket.socket) -> None:
    """Close as a process that is killed does: without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["closed", "reset"])
def test_clients_that_leave_free_their_places_and_their_work_is_dropped(server, client, close):
    content = request(json.dumps(v2(long_file(60), language="vi")).encode(), Content_Type="application/json")
    heard = server.metric("vani_asr_audio_seconds_total")
    left = server.metric("vani_asr_requests_total", status="499")
    connections = gone(server, content, 8)
    until(lambda: server.metric("vani_asr_pending_requests") == 8)
    until(lambda: server.metric("vani_asr_audio_seconds_in_flight") > 60)
    began = time.monotonic()
    for connection in connections:
        close(connection)
    until(server.idle)
    assert time.monotonic() - began < 3  # eight minutes of audio would keep one thread for longer than that
    # Two were let in with their audio; the others are at the door, or were refused there.
    assert server.metric("vani_asr_requests_total", status="499") > left
    assert server.metric("vani_asr_audio_seconds_total") - heard < 4 * 60
    assert server.log_lines("infer status=499")
    assert client.post(INFER, json=v2(audio("vi"))).status_code == 200


def test_a_grpc_client_that_leaves_frees_its_place(server, client, kserve):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    data = long_file(60)
    with grpc.insecure_channel(server.grpc_address) as channel:
        asked = pb.ModelInferRequest(
            model_name=MODEL,
            inputs=[{"name": "audio", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[struct.pack("<I", len(data)) + data],
        )
        calls = [GRPCInferenceServiceStub(channel).ModelInfer.future(asked) for _ in range(6)]
        until(lambda: server.metric("vani_asr_audio_seconds_in_flight") > 60)
        for call in calls:
            call.cancel()
        until(server.idle)
    assert server.log_lines("GRPC ModelInfer status=499")
    assert client.post(INFER, json=v2(audio("vi"))).status_code == 200


def test_a_client_that_leaves_in_mid_stream_frees_its_place(server):
    head = b"--x\r\nContent-Disposition: form-data; name="
    field = head + b'"stream"\r\n\r\ntrue\r\n'
    body = field + head + b'"file"; filename="a.wav"\r\n\r\n' + long_file(95) + b"\r\n--x--\r\n"
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    (connection,) = gone(server, request(body, "/v1/audio/transcriptions", **form), 1)
    connection.settimeout(60)
    assert b"200 OK" in connection.recv(20)
    reset(connection)
    until(server.idle)


def test_a_client_that_never_ends_its_body_leaves_no_debt(server):
    for part in (b"", b'{"inputs": ['):
        head = request(b"", Content_Type="application/json").replace(b"Content-Length: 0", b"Content-Length: 5000000")
        (connection,) = gone(server, head + part, 1)
        until(lambda: server.metric("vani_asr_pending_requests") == 1)
        connection.close()
        until(server.idle)


def test_health_answers_while_every_engine_thread_is_busy(server, client):
    with busy(server, 3, 45):
        for _ in range(5):
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - began < 2


def test_a_flood_is_answered_with_a_text_or_with_when_to_come_back_and_the_queue_recovers(server, client):
    content, headers = wav(np.tile(pcm("vi"), 8)), {"Content-Type": "audio/wav"}

    def ask(number: int) -> httpx.Response:
        return httpx.post(f"{server.address}/v1/models/{MODEL}:predict", content=content, headers=headers, timeout=120)

    answers = together(32, ask)
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= 5
    for answer in answers:
        if answer.status_code == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert answer.json()["error"].startswith("the server is busy: ")
    until(server.idle)
    assert ask(0).status_code == 200


def test_a_full_queue_says_how_much_audio_waits_in_every_shape(server, client):
    shapes = {
        "kserve": (INFER, {"json": v2(audio("vi"))}),
        "openai": ("/v1/audio/transcriptions", {"files": {"file": audio("vi")}}),
        "seed": ("/asr", {"json": {"audio_base64": text64(audio("vi"))}}),
    }
    refused: dict[str, httpx.Response] = {}

    def is_refused(shape: str) -> bool:
        path, options = shapes[shape]
        refused[shape] = client.post(path, **options)
        return refused[shape].status_code != 200

    with busy(server, 4, 60):
        for shape in shapes:
            until(lambda shape=shape: is_refused(shape))
    assert [answer.status_code for answer in refused.values()] == [503] * 3
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused.values())
    sentence = f"seconds of audio are waiting and the limit is {MAX_AUDIO_SECONDS}; try again in "
    assert sentence in refused["kserve"].json()["error"]
    assert sentence in refused["openai"].json()["error"]["message"]
    assert refused["openai"].json()["error"]["type"] == "server_error"
    assert refused["seed"].json()["error_code"] == "OVERLOADED"
    assert server.metric("vani_asr_refused_requests_total", reason="queue") >= 3


def test_too_many_requests_are_refused_before_their_bodies_are_read(server, client):
    head = request(b"", Content_Type="application/json").replace(b"Content-Length: 0", b"Content-Length: 5000000")
    held = gone(server, head, MAX_REQUESTS)
    try:
        until(lambda: server.metric("vani_asr_pending_requests") == MAX_REQUESTS)
        refused = client.post("/transcribe", files={"file": audio("vi")})
    finally:
        for connection in held:
            connection.close()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"] == (
        f"the server is busy: {MAX_REQUESTS} requests are waiting and the limit is {MAX_REQUESTS}; try again in 1 s"
    )
    until(server.idle)
    assert client.post("/transcribe", files={"file": audio("vi")}).status_code == 200


@pytest.mark.parametrize("given", ["0.001", "1ms", "0.001s"])
def test_a_deadline_that_passed_is_said_in_the_shape_of_the_route(client, given):
    options = {"headers": {"X-Request-Timeout": given}}
    kserve = client.post(INFER, json=v2(long_file(60)), **options)
    openai = client.post("/v1/audio/transcriptions", files={"file": long_file(60)}, **options)
    seed = client.post("/asr", json={"audio_base64": text64(long_file(60))}, **options)
    sentence = "the transcript was not ready within 0.001 s"
    assert (kserve.status_code, kserve.json()) == (504, {"error": sentence})
    assert (openai.status_code, openai.json()["error"]["message"]) == (504, sentence)
    assert (seed.status_code, seed.json()) == (504, {"error_code": "DEADLINE_EXCEEDED", "message": sentence})


def test_a_deadline_ends_work_that_has_begun(server, client):
    before = server.metric("vani_asr_refused_requests_total", reason="deadline")
    headers = {"X-Request-Timeout": "300ms"}
    answer = client.post("/transcribe", files={"file": long_file(900)}, headers=headers)
    assert answer.status_code == 504
    assert server.metric("vani_asr_refused_requests_total", reason="deadline") == before + 1


def test_a_stream_whose_time_is_up_ends_with_an_error_event(client):
    form = {"files": {"file": long_file(1700)}, "data": {"stream": "true"}}
    with client.stream("POST", "/v1/audio/transcriptions", **form, headers={"X-Request-Timeout": "0.7"}) as answer:
        assert answer.status_code in (200, 504)
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert "was not ready within 0.7 s" in json.loads(lines[-1])["error"]["message"]


@pytest.mark.parametrize("given", ["", "soon", "-1", "0", "nan", "inf", "1e9", "5 minutes", "1" * 12, "٣"])
def test_a_timeout_that_is_no_number_is_refused(client, given):
    answer = client.post(INFER, json=v2(audio("vi")), headers={"X-Request-Timeout": given.encode()})
    assert answer.status_code == 400
    assert "X-Request-Timeout must be a number of seconds above 0" in answer.json()["error"]


def test_a_generous_deadline_changes_nothing(client):
    answer = client.post(INFER, json=v2(audio("vi")), headers={"X-Request-Timeout": "60"})
    assert answer.status_code == 200


def test_a_deadline_counts_while_the_body_comes(server):
    head = request(b"", Content_Type="application/json", X_Request_Timeout="0.3")
    (connection,) = gone(server, head.replace(b"Content-Length: 0", b"Content-Length: 5000"), 1)
    with connection:
        connection.settimeout(3)
        assert b" 504 " in connection.recv(100)


def test_a_grpc_deadline_is_kept(server, kserve):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    data = long_file(300)
    asked = pb.ModelInferRequest(
        model_name=MODEL,
        inputs=[{"name": "audio", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[struct.pack("<I", len(data)) + data],
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for options in ({"timeout": 0.3}, {"metadata": [("x-request-timeout", "0.05")]}):
            with pytest.raises(grpc.RpcError) as error:
                stub.ModelInfer(asked, **options)
            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(asked, metadata=[("x-request-timeout", "soon")])
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_sigterm_under_load_loses_no_accepted_request_and_tells_a_speaker_to_come_back(tmp_path, kserve):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    data = long_file(15)
    body = json.dumps(v2(data)).encode()
    asked = pb.ModelInferRequest(
        model_name=MODEL,
        inputs=[{"name": "audio", "datatype": "BYTES", "shape": [1]}],
        raw_input_contents=[struct.pack("<I", len(data)) + data],
    )
    with (
        serving(tmp_path / "log", engine_threads=1, max_pending_audio_seconds=3_600) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(20) as pool,
        connect(f"{server.address.replace('http', 'ws', 1)}/v1/audio/stream") as speaker,
    ):
        speaker.recv(timeout=20)
        (slow,) = gone(server, request(body, Content_Type="application/json")[:-1000], 1)
        form = {"file": long_file(240)}
        long = pool.submit(httpx.post, f"{server.address}/transcribe", files=form, timeout=120)
        http = [pool.submit(httpx.post, f"{server.address}{INFER}", content=body, timeout=120) for _ in range(16)]
        rpcs = [GRPCInferenceServiceStub(channel).ModelInfer.future(asked, timeout=120) for _ in range(8)]
        accepted = len([slow, long, speaker, *http, *rpcs])
        answered = partial(server.metric, "vani_asr_requests_total", language="vi")
        until(lambda: answered() + server.metric("vani_asr_pending_requests") >= accepted)
        assert server.metric("vani_asr_pending_requests") > 2
        server.terminate()
        time.sleep(0.2)
        slow.sendall(body[-1000:])
        slow.settimeout(60)
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        assert Counter(future.result().status_code for future in http) == {200: len(http)}
        assert Counter(future.exception() for future in rpcs) == {None: len(rpcs)}
        assert long.result().json()["duration"] > 240
        slow.close()
        with pytest.raises(ConnectionClosed) as closed:
            speaker.recv(timeout=30)
        assert closed.value.rcvd.code == 1012  # service restart
        assert server.process.wait(timeout=30) == 0
        assert not server.log_lines("Traceback")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.address}/health")


def test_grpc_stops_with_http_and_not_after_it(tmp_path, kserve):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with (
        serving(tmp_path / "log", engine_threads=1) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        stub = GRPCInferenceServiceStub(channel)

        def takes_more() -> bool:
            try:
                return stub.ServerReady(pb.ServerReadyRequest(), timeout=5).ready
            except grpc.RpcError:
                return False

        form = {"file": long_file(900)}
        long = pool.submit(httpx.post, f"{server.address}/transcribe", files=form, timeout=120)
        until(lambda: server.metric("vani_asr_audio_seconds_in_flight") > 0)
        assert takes_more()
        server.terminate()
        until(lambda: not takes_more(), seconds=1)
        assert not long.done()
        assert long.result().status_code == 200
        assert server.process.wait(timeout=30) == 0
