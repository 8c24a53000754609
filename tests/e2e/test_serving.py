"""The server as a process, over real HTTP."""

import base64
import json
import socket
import struct
import threading
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import free_port, serving, start

from demo import testset
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

MODEL = "vani-demo"
CLIPS = {clip.language: clip for clip in reversed(testset.read()) if clip.kind == "natural"}


def audio(language: str) -> bytes:
    return (testset.DIRECTORY / CLIPS[language].audio).read_bytes()


def v2(*files: bytes, language: str | list[str] | None = None, **rest) -> dict:
    data = [base64.b64encode(file).decode() for file in files]
    inputs = [{"name": "audio", "datatype": "BYTES", "shape": [len(files)], "data": data}]
    if language is not None:
        codes = [language] if isinstance(language, str) else language
        inputs.append({"name": "language", "datatype": "BYTES", "shape": [len(codes)], "data": codes})
    return {"inputs": inputs, **rest}


def outputs(response: httpx.Response) -> dict[str, list]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as open_client:
        yield open_client


def test_v2_json_answers_what_the_recognizer_says(client, recognizer):
    body = v2(audio("vi"), audio("hi"), language=["vi", "hi"], id="mine")
    response = client.post(f"/v2/models/{MODEL}/infer", json=body)
    found = outputs(response)
    expected = [recognizer.transcribe(audio(code), code) for code in ("vi", "hi")]
    assert found["text"] == [transcript.text for transcript in expected]
    assert found["language"] == ["vi", "hi"]
    assert found["duration_seconds"] == pytest.approx([transcript.duration_seconds for transcript in expected])
    words = [[word["text"] for word in json.loads(item)] for item in found["words"]]
    assert words == [[word.text for word in transcript.words] for transcript in expected]
    assert response.json()["id"] == "mine"


def test_v2_identifies_the_language_when_none_is_named(client):
    found = outputs(client.post(f"/v2/models/{MODEL}/infer", json=v2(audio("hi"), audio("vi"))))
    assert found["language"] == ["hi", "vi"]


def test_v2_takes_the_language_as_a_request_parameter_and_gives_the_outputs_asked_for(client):
    body = v2(audio("hi"), parameters={"language": "hi"}, outputs=[{"name": "language"}])
    assert outputs(client.post(f"/v2/models/{MODEL}/infer", json=body)) == {"language": ["hi"]}


def binary(file: bytes, **head) -> tuple[bytes, dict[str, str]]:
    tensor = struct.pack("<I", len(file)) + file
    shape = {"name": "audio", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    encoded = json.dumps({"inputs": [shape], **head}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(encoded)),
        "Content-Type": "application/octet-stream",
    }
    return encoded + tensor, headers


def test_v2_binary_tensors_answer_as_json_does(client, recognizer):
    content, headers = binary(audio("vi"))
    found = outputs(client.post(f"/v2/models/{MODEL}/infer", content=content, headers=headers))
    assert found["text"] == [recognizer.transcribe(audio("vi")).text]


def test_v2_binary_tensors_come_back_when_asked_for(client, recognizer):
    content, headers = binary(audio("vi"), outputs=[{"name": "text", "parameters": {"binary_data": True}}])
    response = client.post(f"/v2/models/{MODEL}/infer", content=content, headers=headers)
    tensor = response.content[int(response.headers["Inference-Header-Content-Length"]) :]
    assert tensor[4:].decode() == recognizer.transcribe(audio("vi")).text


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_v1_answers_in_its_own_shape(client, recognizer, content_type):
    encoded = base64.b64encode(audio("hi")).decode()
    instances = [encoded, {"audio": encoded, "language": "hi"}, {"audio": {"b64": encoded}}]
    response = client.post(
        f"/v1/models/{MODEL}:predict",
        content=json.dumps({"instances": instances}),
        headers={"Content-Type": content_type},
    )
    texts = [prediction["text"] for prediction in response.json()["predictions"]]
    assert texts == [recognizer.transcribe(audio("hi")).text] * 3


def test_v1_takes_the_file_itself_as_the_body(client, recognizer):
    response = client.post(f"/v1/models/{MODEL}:predict", content=audio("hi"), headers={"Content-Type": "audio/ogg"})
    assert response.json()["predictions"][0]["text"] == recognizer.transcribe(audio("hi")).text


def test_transcribe_answers_with_the_fields_of_the_service_it_replaces(client, recognizer):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    response = client.post(
        "/transcribe",
        files={"file": ("clip.opus", audio("vi"))},
        data={"language": "vi", "model": MODEL, "model_type": "onnx"},
        headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    )
    answer = response.json()
    assert set(answer) == {
        "id", "text", "duration", "processing_time", "real_time_factor", "language", "model", "timestamp", "trace_id"
    }  # fmt: skip
    assert answer["text"] == recognizer.transcribe(audio("vi"), "vi").text
    assert answer["duration"] == pytest.approx(CLIPS["vi"].duration_seconds, abs=0.01)
    assert answer["real_time_factor"] == pytest.approx(answer["processing_time"] / answer["duration"], abs=2e-4)
    assert answer["trace_id"] == trace


def test_health_readiness_and_metadata_tell_which_bundle_is_served(client, recognizer):
    digest = recognizer.bundle.digest
    assert client.get("/health").json() == {"status": "healthy", "model": MODEL, "bundle_digest": digest}
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{MODEL}/ready").json() == {"name": MODEL, "ready": True}
    metadata = client.get(f"/v2/models/{MODEL}").json()
    assert metadata["versions"] == [recognizer.bundle.version]
    assert metadata["parameters"]["bundle_digest"] == digest
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["audio", "language"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["text", "language", "duration_seconds", "words"]


def test_every_response_carries_the_digest_and_the_callers_request_id(client, recognizer):
    for path in ("/health", "/nothing", "/metrics"):
        headers = client.get(path, headers={"X-Request-Id": "abc-1"}).headers
        assert headers["x-request-id"] == "abc-1"
        assert headers["x-vani-bundle-digest"] == recognizer.bundle.digest


def test_metrics_count_requests_and_audio(client):
    def value(series: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series + " ")), 0.0)

    requests = 'vani_asr_requests_total{route="/v2/models/{model_name}/infer",status="200"}'
    seconds = 'vani_asr_audio_seconds_total{language="hi"}'
    before = value(requests), value(seconds)
    client.post(f"/v2/models/{MODEL}/infer", json=v2(audio("hi")))
    assert value(requests) == before[0] + 1
    assert value(seconds) - before[1] == pytest.approx(CLIPS["hi"].duration_seconds, abs=0.01)
    assert value("vani_asr_pending_requests") == 0


INFER = f"/v2/models/{MODEL}/infer"
WRONG = {
    "an unknown language": (INFER, v2(b"x", language="xx"), 400, "language 'xx' is not one of this model's: vi, hi"),
    "an unknown output": (INFER, v2(b"x", outputs=[{"name": "tokens"}]), 400, "output 'tokens'"),
    "no audio": (INFER, {"inputs": []}, 400, "the input 'audio' is missing"),
    "numbers for audio": (
        INFER,
        {"inputs": [{"name": "audio", "datatype": "FP32", "shape": [1], "data": [0]}]},
        400,
        "BYTES",
    ),
    "a shape that lies": (INFER, {**v2(b"x"), "inputs": [{**v2(b"x")["inputs"][0], "shape": [2]}]}, 400, "shape [2]"),
    "no base64": (INFER, {"inputs": [{**v2(b"x")["inputs"][0], "data": ["%"]}]}, 400, "not base64"),
    "inputs that are no list": (INFER, {"inputs": 1}, 400, "inputs"),
    "no instances": (f"/v1/models/{MODEL}:predict", {}, 400, "instances"),
    "text for audio": (INFER, v2(b"hello there, this is no audio"), 415, "not supported"),
    "an empty file": (INFER, v2(b""), 422, "empty"),
    "an unknown model": ("/v2/models/other/infer", v2(b"x"), 404, "other"),
    "an unknown V1 model": ("/v1/models/other:predict", {"instances": []}, 404, "other"),
    "a version": (f"/v2/models/{MODEL}/versions/9/infer", v2(b"x"), 501, "versioning"),
}


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_refused_with_a_sentence(client, path, body, status, words):
    response = client.post(path, json=body)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_transcribe_refuses_what_is_missing_or_unknown(client):
    assert client.post("/transcribe", data={"language": "vi"}).status_code == 400
    wrong_model = client.post("/transcribe", files={"file": audio("vi")}, data={"model": "other"})
    assert (wrong_model.status_code, "other" in wrong_model.json()["error"]) == (400, True)
    assert client.get("/transcribe").status_code == 405
    broken = client.post(
        "/transcribe", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 400


def test_an_error_does_not_repeat_the_audio(client, server):
    secret = base64.b64encode(b"the words of a patient " * 100).decode()
    bodies = [
        {"inputs": secret},
        {"inputs": [{"name": "audio", "shape": "x", "datatype": "BYTES", "data": secret}]},
        {"inputs": [{"name": "audio", "shape": [1], "datatype": "BYTES", "data": [secret]}]},
    ]
    for body in bodies:
        response = client.post(INFER, json=body)
        assert response.status_code in (400, 415)
        assert secret[:40] not in response.text
    assert secret[:40] not in server.log.read_text()


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_the_server(client, server):
    port = int(server.address.rsplit(":", 1)[1])
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode())
        time.sleep(0.3)
    deadline = time.monotonic() + 10
    while 'status="499"' not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Traceback" not in server.log.read_text()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["audio", "language"]) | json_values,
        "datatype": st.sampled_from(["BYTES", "FP32"]) | json_values,
        "shape": st.lists(st.integers(-2, 3), max_size=2) | json_values,
        "data": st.lists(st.sampled_from(["", "AAAA", "vi"]), max_size=3) | json_values,
        "parameters": st.just({"binary_data_size": 4}) | json_values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | json_values},
    optional={"id": json_values, "parameters": json_values, "outputs": json_values},
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=requests | json_values, cut=st.integers(0, 200), as_binary=st.booleans())
def test_no_request_body_makes_the_server_fail(client, body, cut, as_binary):
    encoded = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if as_binary:
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(cut)}
    for path in (INFER, f"/v1/models/{MODEL}:predict"):
        assert client.post(path, content=encoded, headers=headers).status_code in (200, 400, 415, 422)


def long_file(recognizer, seconds: float) -> bytes:
    """A WAV of that length, made of the clip over and over: 16 kHz mono PCM16."""
    samples = recognizer.decode(audio("vi")).samples
    pcm = (samples * 32767).astype("<i2").tobytes() * int(seconds * 16_000 // len(samples) + 1)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16, b"data", len(pcm)
    )
    return head + pcm


def test_sigterm_finishes_what_is_in_flight(tmp_path, recognizer):
    with serving(tmp_path / "log", engine_threads=1) as server:
        answers: list[httpx.Response] = []

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post("/transcribe", files={"file": long_file(recognizer, 240)}))

        asking = threading.Thread(target=ask)
        asking.start()
        with server.client() as client:
            while "vani_asr_pending_requests 1.0" not in client.get("/metrics").text:
                time.sleep(0.01)
        server.terminate()
        asking.join()
        assert server.process.wait(timeout=30) == 0
        assert answers[0].status_code == 200
        assert answers[0].json()["duration"] > 240
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.address}/health")


def test_health_answers_while_every_engine_thread_is_busy(tmp_path, recognizer):
    with serving(tmp_path / "log", engine_threads=1) as server, server.client() as client:
        body = long_file(recognizer, 120)
        busy = [
            threading.Thread(
                target=lambda: httpx.post(f"{server.address}/transcribe", files={"file": body}, timeout=120)
            )
            for _ in range(4)
        ]
        for thread in busy:
            thread.start()
        while "vani_asr_pending_requests 4.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        assert client.get("/health").status_code == 200
        assert "vani_asr_pending_requests 0.0" not in client.get("/metrics").text
        for thread in busy:
            thread.join()


def test_a_full_queue_is_answered_at_once_with_when_to_come_back(tmp_path, recognizer):
    with serving(tmp_path / "log", engine_threads=1, max_pending_requests=1) as server, server.client() as client:
        body = long_file(recognizer, 120)
        busy = threading.Thread(
            target=lambda: httpx.post(f"{server.address}/transcribe", files={"file": body}, timeout=120)
        )
        busy.start()
        while "vani_asr_pending_requests 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        refused = client.post("/transcribe", files={"file": audio("vi")})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"] == "1 requests are waiting and the limit is 1; try again in 1 s"
        busy.join()
        assert client.post("/transcribe", files={"file": audio("vi")}).status_code == 200


def ends(tmp_path, **settings) -> tuple[int, str]:
    server = start(tmp_path / "log", **settings)
    status = server.process.wait(timeout=60)
    return status, server.log.read_text()


def test_a_bundle_that_was_altered_stops_the_process_before_the_port_opens(tmp_path):
    for file in EMBEDDED_BUNDLE.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph = bytearray((tmp_path / "model.onnx").read_bytes())
    graph[1000] ^= 1
    (tmp_path / "model.onnx").write_bytes(graph)
    log = tmp_path.parent / f"{tmp_path.name}.log"
    server = start(log, bundle=tmp_path)
    assert server.process.wait(timeout=60) == 3
    assert "model.onnx does not have the manifest's SHA-256" in log.read_text()


def test_a_wrong_setting_stops_the_process_with_its_name(tmp_path):
    assert ends(tmp_path, max_audio_seconds=-1) == (2, "VANI_ASR_MAX_AUDIO_SECONDS: Input should be greater than 0\n")
    assert ends(tmp_path, max_audio_second=60) == (2, "VANI_ASR_MAX_AUDIO_SECOND: there is no such setting\n")


def test_a_port_in_use_is_named(tmp_path, server):
    port = int(server.address.rsplit(":", 1)[1])
    status, log = ends(tmp_path, http_port=port)
    assert status == 2
    assert f"port {port}" in log
    assert "Traceback" not in log
    assert free_port() != port
