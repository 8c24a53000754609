"""The server as a process, over real HTTP."""

import json
import socket
import time

import pytest
from asking import CLIPS, INFER, MODEL, audio, binary, outputs, text64, v2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import start, until

from predictor.settings import EMBEDDED_BUNDLE


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
    encoded = text64(audio("hi"))
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
    version = recognizer.bundle.version
    assert client.get("/health").json() == {
        "status": "healthy",
        "model": MODEL,
        "bundle_digest": digest,
        "models": [{"name": MODEL, "version": version, "bundle_digest": digest}],
    }
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{MODEL}/ready").json() == {"name": MODEL, "ready": True}
    metadata = client.get(f"/v2/models/{MODEL}").json()
    assert metadata["versions"] == [version]
    assert metadata["parameters"]["bundle_digest"] == digest
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["audio", "language", "hotwords"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == [
        "text", "language", "duration_seconds", "confidence", "words",
    ]  # fmt: skip


def test_every_response_carries_the_digest_and_the_callers_request_id(client, recognizer):
    for path in ("/health", "/nothing", "/metrics"):
        headers = client.get(path, headers={"X-Request-Id": "abc-1"}).headers
        assert headers["x-request-id"] == "abc-1"
        assert headers["x-vani-bundle-digest"] == recognizer.bundle.digest


def test_metrics_count_requests_and_audio(client, server):
    def counted() -> tuple[float, float]:
        route = "/v2/models/{model_name}/infer"
        requests = server.metric("vani_asr_requests_total", route=route, status="200", language="hi")
        return requests, server.metric("vani_asr_audio_seconds_total", language="hi")

    before = counted()
    client.post(INFER, json=v2(audio("hi")))
    after = counted()
    assert after[0] == before[0] + 1
    assert after[1] - before[1] == pytest.approx(CLIPS["hi"].duration_seconds, abs=0.01)
    assert server.idle()


WRONG = {
    "an unknown language": (INFER, v2(b"x", language="xx"), 400, "language 'xx' is not one of this model's: vi, hi"),
    "an unknown output": (INFER, v2(b"x", outputs=[{"name": "tokens"}]), 400, "output 'tokens'"),
    "no audio": (INFER, {"inputs": []}, 400, "the input 'audio' is missing"),
    "numbers for audio": (
        INFER,
        {"inputs": [{"name": "audio", "datatype": "FP64", "shape": [1], "data": [0]}]},
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
    "an unknown version": (
        f"/v2/models/{MODEL}/versions/9/infer",
        v2(b"x"),
        404,
        "model 'vani-demo version 9' is not served here; vani-demo version 1 is",
    ),
}


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_refused_with_a_sentence(client, path, body, status, words):
    response = client.post(path, json=body)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_transcribe_refuses_what_is_missing_or_unknown(client):
    assert client.post("/transcribe", data={"language": "vi"}).status_code == 400
    wrong_model = client.post("/transcribe", files={"file": audio("vi")}, data={"model": "other"})
    assert (wrong_model.status_code, "other" in wrong_model.json()["error"]) == (404, True)
    assert client.get("/transcribe").status_code == 405
    broken = client.post(
        "/transcribe", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 400


def test_an_error_does_not_repeat_the_audio(client, server):
    secret = text64(b"the words of a patient " * 100)
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
    before = server.metric("vani_asr_requests_total", status="499")
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode())
        time.sleep(0.3)
    until(lambda: server.metric("vani_asr_requests_total", status="499") > before)
    assert "Traceback" not in server.log.read_text()


def test_pages_of_other_origins_may_not_call_unless_they_are_listed(client):
    origin = {"Origin": "https://app.example"}
    assert client.options(INFER, headers={**origin, "Access-Control-Request-Method": "POST"}).status_code == 405
    answer = client.post(INFER, json=v2(audio("vi")), headers=origin)
    assert "access-control-allow-origin" not in answer.headers


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
    status, log = ends(tmp_path, http_port=server.port)
    assert status == 2
    assert f"port {server.port}" in log
    assert "Traceback" not in log
