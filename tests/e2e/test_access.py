"""Who may call and how much: keys, rates, sizes and origins; the cache; and what the log never says."""

import json
import struct
import subprocess
import sys
from functools import partial

import grpc
import httpx
import openai
import pytest
from asking import INFER, MODEL, audio, binary, outputs, pcm, text64, v2, wav
from serving import REPOSITORY, Server, serving, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ORIGIN = "https://app.example"
MEGABYTE = 1 << 20


def keys(*arguments: object) -> str:
    command = [sys.executable, "-m", "predictor", "keys", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(file):
    return keys("add", "web", "--file", file)


@pytest.fixture(scope="module")
def limited_key(file, key):
    return keys("add", "limited", "--file", file, "--audio-seconds-per-minute", 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory, file, key, limited_key):
    settings = {"api_keys_file": file, "cors_origins": ORIGIN, "cache_mb": 10, "max_body_mb": 1, "log_level": "DEBUG"}
    with serving(tmp_path_factory.mktemp("server") / "log", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(server):
    with server.client() as open_client:
        yield open_client


@pytest.fixture(scope="module")
def client(server, key):
    with server.client(headers={"Authorization": f"Bearer {key}"}) as open_client:
        yield open_client


@pytest.fixture
def infer(server, kserve):
    """ModelInfer of one file, with metadata."""
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    def ask(data: bytes, **metadata: str):
        asked = pb.ModelInferRequest(
            model_name=MODEL,
            inputs=[{"name": "audio", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[struct.pack("<I", len(data)) + data],
        )
        return stub.ModelInfer(asked, timeout=60, metadata=[(k.replace("_", "-"), v) for k, v in metadata.items()])

    with grpc.insecure_channel(server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        yield ask


NO_KEY = "an API key is needed: send it as 'Authorization: Bearer KEY'"
GUARDED = {
    "V2": ("POST", INFER, {"json": v2(audio("vi"))}),
    "V1": ("POST", f"/v1/models/{MODEL}:predict", {"content": audio("vi")}),
    "/transcribe": ("POST", "/transcribe", {"files": {"file": audio("vi")}}),
    "/asr": ("POST", "/asr", {"json": {"audio_base64": text64(audio("vi"))}}),
    "OpenAI": ("POST", "/v1/audio/transcriptions", {"files": {"file": audio("vi")}}),
    "the index": ("POST", "/v2/repository/index", {}),
    "loading": ("POST", f"/v2/repository/models/{MODEL}/load", {}),
    "unloading": ("POST", f"/v2/repository/models/{MODEL}/unload", {}),
    "metadata": ("GET", f"/v2/models/{MODEL}", {}),
    "models": ("GET", "/models", {}),
    "OpenAI's models": ("GET", "/v1/models", {}),
    "no route": ("GET", "/nothing", {}),
    "another method": ("DELETE", f"/v2/models/{MODEL}", {}),
}


def sentence(answer: httpx.Response) -> str:
    content = answer.json()
    if answer.request.url.path == "/asr":
        assert set(content) == {"error_code", "message"}
        return content["message"]
    if answer.request.url.path.startswith("/v1/audio/"):
        assert content["error"]["type"]
        return content["error"]["message"]
    return content["error"]


@pytest.mark.parametrize(("method", "path", "options"), GUARDED.values(), ids=GUARDED.keys())
def test_without_a_valid_key_nobody_comes_in(stranger, method, path, options):
    without = stranger.request(method, path, **options)
    assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
    assert sentence(without) == NO_KEY
    for headers in ({"Authorization": "Bearer vani_wrong"}, {"x-api-key": "vani_wrong"}):
        wrong = stranger.request(method, path, **options, headers=headers)
        assert (wrong.status_code, sentence(wrong)) == (401, "the API key is not valid")
    assert without.headers["x-request-id"]


def test_a_key_comes_as_bearer_or_as_x_api_key(stranger, key):
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"X-API-Key": key}):
        assert stranger.post(INFER, json=v2(audio("vi")), headers=headers).status_code == 200


def test_openai_sends_its_key(server, key):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0) as ai:
        assert ai.audio.transcriptions.create(file=("a.opus", audio("vi")), model=MODEL).text
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0) as ai:
        with pytest.raises(openai.AuthenticationError) as error:
            ai.audio.transcriptions.create(file=("a.opus", audio("vi")), model=MODEL)
        assert error.value.code == "invalid_api_key"


def test_grpc_takes_the_key_from_metadata(infer, key):
    assert infer(audio("vi"), authorization=f"Bearer {key}").outputs
    assert infer(audio("vi"), x_api_key=key).outputs
    for metadata in ({}, {"x_api_key": "vani_wrong"}):
        with pytest.raises(grpc.RpcError) as error:
            infer(audio("vi"), **metadata)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_probes_scrapers_and_the_page_need_no_key(stranger):
    for path in ("/health", "/metrics", "/", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        assert stranger.get(path).status_code == 200
    page = stranger.get("/", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")


def stream(server: Server, **options):
    return connect(f"{server.address.replace('http', 'ws', 1)}/v1/audio/stream", **options)


def test_a_dictation_brings_its_key_in_a_header_or_in_its_first_message(server, key):
    with stream(server, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        assert json.loads(socket.recv(timeout=20))["type"] == "ready"
    with stream(server) as socket:
        socket.send(json.dumps({"type": "start", "key": key}))
        assert json.loads(socket.recv(timeout=20))["type"] == "ready"
        socket.send(pcm("vi").tobytes())
        socket.send('{"type": "end"}')
        assert [json.loads(message)["type"] for message in socket][-2:] == ["final", "done"]


FIRST_MESSAGES = {
    "a wrong key": ('{"type": "start", "key": "vani_wrong"}', "UNAUTHENTICATED"),
    "no key": ('{"type": "start"}', "UNAUTHENTICATED"),
    "audio": (b"\0\0" * 1_000, "INVALID_REQUEST"),
    "no JSON": ("hello", "INVALID_REQUEST"),
}


@pytest.mark.parametrize(("message", "code"), FIRST_MESSAGES.values(), ids=FIRST_MESSAGES.keys())
def test_a_dictation_without_a_valid_key_is_refused(server, message, code):
    with stream(server) as socket:
        socket.send(message)
        error = json.loads(socket.recv(timeout=20))
        assert (error["type"], error["error_code"]) == ("error", code)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=20)
    assert socket.close_code == 1008
    with stream(server, additional_headers={"X-API-Key": "vani_wrong"}) as socket:
        assert json.loads(socket.recv(timeout=20))["error_code"] == "UNAUTHENTICATED"


def test_a_revoked_key_stops_working_and_a_new_one_starts_without_a_restart(stranger, file):
    added = keys("add", "passing", "--file", file)
    headers = {"X-API-Key": added}
    until(lambda: stranger.get("/models", headers=headers).status_code == 200, seconds=5)
    keys("revoke", "passing", "--file", file)
    until(lambda: stranger.get("/models", headers=headers).status_code == 401, seconds=5)


def test_a_key_that_has_used_up_its_audio_is_told_when_to_come_back(stranger, server, limited_key):
    headers = {"X-API-Key": limited_key}
    before = server.metric("vani_asr_refused_requests_total", reason="rate")
    assert stranger.post("/transcribe", files={"file": audio("hi")}, headers=headers).status_code == 200
    for method, path, options in (GUARDED["V2"], GUARDED["OpenAI"], GUARDED["/asr"]):
        refused = stranger.request(method, path, **options, headers=headers)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert sentence(refused).startswith("this key may send 2 seconds of audio a minute; try again in ")
    assert server.metric("vani_asr_refused_requests_total", reason="rate") == before + 3


def test_another_key_is_not_held_up_by_it(client):
    assert client.post(INFER, json=v2(audio("vi"))).status_code == 200


def chunked(data: bytes):
    yield from (data[at : at + 60_000] for at in range(0, len(data), 60_000))


OTHER_BODIES = ["/v1/audio/transcriptions", "/v2/repository/index", f"/v2/repository/models/{MODEL}/load"]
LARGE = b"\0" * (MEGABYTE + 1)
TOO_LARGE = f"the request is larger than the limit of {MEGABYTE} bytes"


@pytest.mark.parametrize("send", [lambda data: data, chunked], ids=["with its length", "in chunks"])
@pytest.mark.parametrize("path", [INFER, f"/v1/models/{MODEL}:predict", "/asr", "/transcribe", *OTHER_BODIES])
def test_too_large_a_body_is_refused_and_the_connection_still_serves(client, server, path, send):
    refused = client.post(path, content=send(LARGE), headers={"Content-Type": "application/json"})
    assert (refused.status_code, sentence(refused)) == (413, TOO_LARGE)
    assert client.post(INFER, json=v2(audio("vi"))).status_code == 200
    assert server.idle()


@pytest.mark.parametrize("send", [lambda data: data, chunked], ids=["with its length", "in chunks"])
def test_a_body_of_many_times_the_limit_is_refused_too(client, server, send):
    refused = client.post(INFER, content=send(LARGE * 20), headers={"Content-Type": "application/json"})
    assert (refused.status_code, sentence(refused)) == (413, TOO_LARGE)
    assert server.idle()


@pytest.mark.parametrize("options", [[], ["-H", "Transfer-Encoding: chunked"]], ids=["with its length", "in chunks"])
def test_curl_is_told_that_its_body_is_too_large(server, key, options):
    command = ["curl", "-sS", "-m", "30", "-w", "%{http_code}", "-H", f"x-api-key: {key}", *options]
    done = subprocess.run(
        [*command, "--data-binary", "@-", f"{server.address}{INFER}"], input=LARGE * 20, capture_output=True, check=True
    )
    assert done.stdout.decode() == json.dumps({"error": TOO_LARGE}) + "413"


def test_a_body_of_just_the_limit_is_read(client):
    answer = client.post(f"/v1/models/{MODEL}:predict", content=LARGE[:MEGABYTE], headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 415


def test_too_large_a_message_is_refused_over_grpc_and_the_channel_still_serves(infer, key):
    with pytest.raises(grpc.RpcError) as error:
        infer(b"\0" * (MEGABYTE + (1 << 17)), x_api_key=key)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert infer(audio("vi"), x_api_key=key).outputs


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_a_page_of_a_listed_origin_may_call_and_read_which_bytes_answered(client, stranger):
    allowed = stranger.options(INFER, headers={"Origin": ORIGIN, **PREFLIGHT})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    answer = client.post(INFER, json=v2(audio("vi")), headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-vani-bundle-digest" in answer.headers["access-control-expose-headers"]
    refused = stranger.post(INFER, json=v2(audio("vi")), headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_a_page_of_another_origin_may_not(client, stranger):
    other = {"Origin": "https://elsewhere.example"}
    assert stranger.options(INFER, headers={**other, **PREFLIGHT}).status_code == 400
    answer = client.post(INFER, json=v2(audio("vi")), headers=other)
    assert "access-control-allow-origin" not in answer.headers


def lookups(server: Server) -> tuple[float, float]:
    return tuple(server.metric("vani_asr_cache_lookups_total", result=result) for result in ("hit", "miss"))


def test_the_same_audio_asked_for_in_the_same_way_is_remembered(client, server):
    body = v2(wav(pcm("hi")[:-123]), language="hi")
    hits, misses = lookups(server)
    first = outputs(client.post(INFER, json=body))
    assert lookups(server) == (hits, misses + 1)
    assert outputs(client.post(INFER, json=body)) == first
    assert lookups(server) == (hits + 1, misses + 1)
    assert server.log_lines("cache=hit")
    client.post(INFER, json={**body, "parameters": {"hotwords": "नमस्ते"}})
    client.post(INFER, json=v2(wav(pcm("hi")[:-122]), language="hi"))
    assert lookups(server) == (hits + 1, misses + 3)


def test_a_binary_request_finds_what_a_json_request_left(client, server):
    file = wav(pcm("vi")[:-77])
    first = outputs(client.post(INFER, json=v2(file)))
    hits, misses = lookups(server)
    content, headers = binary(file)
    assert outputs(client.post(INFER, content=content, headers=headers)) == first
    assert lookups(server) == (hits + 1, misses)


def test_the_log_has_one_line_a_request_and_no_text_audio_or_secret(client, server, key, limited_key, stranger):
    secret = "vani_a-secret-that-nobody-knows"
    identities = [f"logged-{number}" for number in range(5)]
    data = audio("vi")
    asked = [
        lambda headers: client.post(INFER, json=v2(data), headers=headers),
        lambda headers: client.post("/asr", json={"audio_base64": text64(data)}, headers=headers),
        lambda headers: client.post("/transcribe", files={"file": data}, headers=headers),
        lambda headers: client.post(INFER, json={"inputs": [text64(data)]}, headers=headers),
        lambda headers: stranger.post(INFER, json=v2(data), headers={**headers, "x-api-key": secret}),
    ]
    statuses = [ask({"X-Request-Id": identity}).status_code for ask, identity in zip(asked, identities, strict=True)]
    assert statuses == [200, 200, 200, 400, 401]
    for identity, status in zip(identities, statuses, strict=True):
        until(partial(server.log_lines, f"request_id={identity}"))  # it is written when the answer has been sent
        (line,) = server.log_lines(f"request_id={identity}")
        assert f" status={status} " in line
        assert ("key=web" in line) == (status != 401)
    text = outputs(client.post(INFER, json=v2(data)))["text"][0]
    log = server.log.read_text()
    for unwanted in (secret, key, limited_key, text, text.split()[-1], text64(data)[:24], "Traceback"):
        assert unwanted not in log
