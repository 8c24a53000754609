"""Users' own clients, over real sockets: the same clip gives the same text on every route, and errors are understood.

A browser is in test_page.py. Triton's gRPC client runs in a process of its own: see triton_client.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import httpx
import numpy as np
import openai
import pytest
from asking import INFER, MODEL, RATE_HZ, audio, binary, long_file, outputs, pcm, text64, v2, wav
from serving import REPOSITORY, Server, until
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

CALLER = "e2e-clients-7"


@pytest.fixture(scope="module")
def file():
    return wav(pcm("vi"))


@pytest.fixture(scope="module")
def said(recognizer, file):
    return recognizer.transcribe(file).text


@pytest.fixture(scope="module")
def ai(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="not needed", max_retries=0) as client:
        yield client


def curl(server: Server, path: str, *options: str, data: bytes | None = None) -> str:
    command = ["curl", "-sS", "--fail-with-body", "-m", "60", *options, f"{server.address}{path}"]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=90).stdout.decode()


def by_triton(server: Server, *inputs: triton.InferInput, **options) -> triton.InferResult:
    with triton.InferenceServerClient(server.address.removeprefix("http://")) as client:
        return client.infer(MODEL, list(inputs), **options)


def tensor(name: str, datatype: str, array: np.ndarray, *, binary_data: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary_data)
    return made


def triton_text(server: Server, datatype: str, array: np.ndarray, *, binary_data: bool = True) -> str:
    return by_triton(server, tensor("audio", datatype, array, binary_data=binary_data)).as_numpy("text")[0].decode()


def json_samples(server: Server, values: list) -> str:
    datatype = "INT16" if isinstance(values[0], int) else "FP32"
    body = {"inputs": [{"name": "audio", "datatype": datatype, "shape": [len(values)], "data": values}]}
    return outputs(httpx.post(f"{server.address}{INFER}", json=body, timeout=60))["text"][0]


def socket_url(server: Server, query: str = "") -> str:
    return f"{server.address.replace('http', 'ws', 1)}/v1/audio/stream{query}"


def dictate(socket: ClientConnection, samples: np.ndarray, chunk_seconds: float = 0.25) -> list[dict]:
    """Send samples in pieces and the end; what comes back until the server closes."""
    size = int(chunk_seconds * RATE_HZ)
    for at in range(0, len(samples), size):
        socket.send(samples[at : at + size].astype("<i2").tobytes())
    socket.send('{"type": "end"}')
    return [json.loads(message) for message in socket]


def dictated(server: Server, file: bytes) -> str:
    with connect(socket_url(server)) as socket:
        events = dictate(socket, pcm("vi"))
    return " ".join(event["text"] for event in events if event["type"] == "final")


ROUTES: dict[str, Callable[[Server, bytes], str]] = {
    "V2 JSON": lambda s, f: outputs(httpx.post(s.address + INFER, json=v2(f)))["text"][0],
    "V2 JSON of floats": lambda s, f: json_samples(s, (pcm("vi") / 32768).tolist()),
    "V2 JSON of integers": lambda s, f: json_samples(s, pcm("vi").tolist()),
    "Triton BYTES": lambda s, f: triton_text(s, "BYTES", np.array([f], object)),
    "Triton FP32": lambda s, f: triton_text(s, "FP32", pcm("vi").astype(np.float32) / 32768),
    "Triton FP32 without binary data": lambda s, f: triton_text(
        s, "FP32", pcm("vi").astype(np.float32) / 32768, binary_data=False
    ),
    "Triton INT16": lambda s, f: triton_text(s, "INT16", pcm("vi")),
    "Triton INT16 as one row": lambda s, f: triton_text(s, "INT16", pcm("vi")[None]),
    "Triton UINT8": lambda s, f: triton_text(s, "UINT8", np.frombuffer(f, np.uint8)),
    "V1 by curl": lambda s, f: json.loads(
        curl(s, f"/v1/models/{MODEL}:predict", "--data-binary", "@-", "-H", "Content-Type: audio/wav", data=f)
    )["predictions"][0]["text"],
    "V1 JSON by curl": lambda s, f: json.loads(
        curl(s, f"/v1/models/{MODEL}:predict", "--json", "@-", data=json.dumps({"instances": [text64(f)]}).encode())
    )["predictions"][0]["text"],
    "V2 by curl": lambda s, f: json.loads(curl(s, INFER, "--json", "@-", data=json.dumps(v2(f)).encode()))["outputs"][
        0
    ]["data"][0],
    "/transcribe by curl": lambda s, f: json.loads(curl(s, "/transcribe", "-F", "file=@-;filename=clip.wav", data=f))[
        "text"
    ],
    "/asr by curl": lambda s, f: json.loads(
        curl(s, "/asr", "--json", "@-", data=json.dumps({"audio_base64": text64(f)}).encode())
    )["transcription"],
    "OpenAI's route by curl": lambda s, f: curl(
        s, "/v1/audio/transcriptions", "-F", "file=@-;filename=a.wav", "-F", "response_format=text", data=f
    ).rstrip("\n"),
    "live dictation": dictated,
}


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
def test_the_same_clip_gives_the_same_text(server, file, said, ask):
    assert ask(server, file) == said


def test_many_at_once_each_get_their_own_text(server, recognizer):
    said = {code: recognizer.transcribe(audio(code)).text for code in ("vi", "hi")}
    codes = ["vi", "hi", "hi"] * 12

    def ask(code: str) -> str:
        return httpx.post(f"{server.address}/transcribe", files={"file": audio(code)}, timeout=60).json()["text"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, codes)) == [said[code] for code in codes]


def test_triton_over_http_gets_what_it_asks_for(server, recognizer, file):
    expected = recognizer.transcribe(file, "vi")
    asked = [triton.InferRequestedOutput("text"), triton.InferRequestedOutput("duration_seconds", binary_data=False)]
    files, codes = np.array([file] * 2, object), np.array([b"vi"], object)
    inputs = [tensor("audio", "BYTES", files), tensor("language", "BYTES", codes)]
    answer = by_triton(server, *inputs, outputs=asked, request_id="mine")
    assert [text.decode() for text in answer.as_numpy("text")] == [expected.text] * 2
    assert answer.as_numpy("duration_seconds").tolist() == [expected.duration_seconds] * 2
    assert answer.as_numpy("words") is None
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", MODEL, "1")
    assert response["parameters"]["bundle_digest"] == recognizer.bundle.digest


def test_triton_over_http_passes_parameters(server, said):
    half = pcm("vi")[::2]
    answer = by_triton(server, tensor("audio", "INT16", half), parameters={"sample_rate": 8_000, "language": "vi"})
    assert answer.as_numpy("text")[0].decode() == said
    assert answer.as_numpy("duration_seconds")[0] == pytest.approx(len(half) / 8_000, abs=0.001)
    hot = by_triton(server, tensor("audio", "INT16", pcm("vi")), parameters={"hotwords": "rửa bát, biển"})
    assert hot.as_numpy("text")[0].decode() == said


def test_triton_over_http_looks_around(server):
    with triton.InferenceServerClient(server.address.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["name"] == "vani"
        assert client.get_model_metadata(MODEL)["inputs"][0]["name"] == "audio"
        assert [(entry["name"], entry["state"]) for entry in client.get_model_repository_index()] == [(MODEL, "READY")]
        with pytest.raises(InferenceServerException, match="model 'other' is not served here"):
            client.infer("other", [tensor("audio", "INT16", pcm("vi"))])


def test_triton_over_grpc(server, recognizer, file, said, tmp_path):
    (tmp_path / "clip.wav").write_bytes(file)
    script = REPOSITORY / "tests" / "support" / "triton_client.py"
    command = [sys.executable, script, server.grpc_address, MODEL, tmp_path / "clip.wav"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    texts = found["texts"]
    assert texts.pop("two") == [said] * 2
    assert texts == dict.fromkeys(texts, said)
    expected = recognizer.transcribe(file, "vi")
    assert [word["text"] for word in found["whole"].pop("words")] == [word.text for word in expected.words]
    assert found["whole"] == {
        "id": "mine",
        "version": "1",
        "digest": recognizer.bundle.digest,
        "language": "vi",
        "duration_seconds": expected.duration_seconds,
    }
    codes = {name: code for name, (code, _) in found["refused"].items()}
    assert codes == {
        "an unknown model": "StatusCode.NOT_FOUND",
        "an unknown version": "StatusCode.NOT_FOUND",
        "an unknown language": "StatusCode.INVALID_ARGUMENT",
        "no audio": "StatusCode.INVALID_ARGUMENT",
    }
    assert found["refused"]["an unknown language"][1] == "language 'xx' is not one of this model's: vi, hi"
    assert found["live"]
    assert found["ready"]
    assert found["inputs"] == ["audio", "language", "hotwords"]
    assert found["server"] == "vani"


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_kserve_over_rest(kserve, server, file, said, protocol):
    config = kserve.RESTConfig(protocol=protocol, retries=1)
    async with kserve.InferenceRESTClient(config) as client:
        assert await client.is_server_live(server.address)
        assert await client.is_model_ready(server.address, MODEL)
        if protocol == "v1":
            answer = await client.infer(server.address, {"instances": [text64(file)]}, MODEL)
            assert answer["predictions"][0]["text"] == said
            with pytest.raises(httpx.HTTPStatusError, match="model 'other' is not served here"):
                await client.is_model_ready(server.address, "other")
            return
        assert await client.is_server_ready(server.address)
        assert not await client.is_model_ready(server.address, "other")
        as_json = kserve.InferInput("audio", [1], "BYTES", [text64(file)])
        as_binary = kserve.InferInput("audio", [1], "BYTES")
        as_binary.set_data_from_numpy(np.array([file], object))
        samples = kserve.InferInput("audio", [len(pcm("vi"))], "INT16", parameters={"sample_rate": RATE_HZ})
        samples.set_data_from_numpy(pcm("vi"))
        for given in (as_json, as_binary, samples):
            request = kserve.InferRequest(MODEL, [given], parameters={"language": "vi"})
            headers: dict[str, str] = {}
            answer = await client.infer(server.address, request, MODEL, response_headers=headers)
            assert answer.outputs[0].data == [said]
            assert headers["x-vani-bundle-digest"] == answer.parameters["bundle_digest"]
        with pytest.raises(httpx.HTTPStatusError, match="the input 'audio' is missing"):
            await client.infer(server.address, kserve.InferRequest(MODEL, []), MODEL)


def raw_file(kserve, file: bytes):
    made = kserve.InferInput("audio", [1], "BYTES")
    made.set_data_from_numpy(np.array([file], object))
    return made


KSERVE_GRPC = {
    "raw BYTES": raw_file,
    "typed BYTES": lambda kserve, file: kserve.InferInput("audio", [1], "BYTES", [file]),
    "typed FP32": lambda kserve, file: kserve.InferInput(
        "audio", pcm("vi").shape, "FP32", (pcm("vi") / 32768).tolist()
    ),
    "typed INT16": lambda kserve, file: kserve.InferInput("audio", pcm("vi").shape, "INT16", pcm("vi").tolist()),
    "typed UINT8": lambda kserve, file: kserve.InferInput("audio", [len(file)], "UINT8", list(file)),
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name) for name, make in KSERVE_GRPC.items()],
)
async def test_kserve_over_grpc(kserve, server, file, said, make):
    async with kserve.InferenceGRPCClient(server.grpc_address, retries=2) as client:
        parameters = {"language": "vi", "hotwords": "bát"}
        answer = await client.infer(kserve.InferRequest(MODEL, [make(kserve, file)], "mine", parameters=parameters))
    found = {output.name: output.as_numpy()[0] for output in answer.outputs}
    text = found["text"]
    assert (text.decode() if isinstance(text, bytes) else text) == said
    assert found["duration_seconds"] == pytest.approx(len(pcm("vi")) / RATE_HZ)
    assert (answer.id, answer.model_version) == ("mine", "1")
    assert answer.parameters["bundle_digest"].string_param.startswith("sha256:")


async def test_kserve_over_grpc_looks_around(kserve, server):
    async with kserve.InferenceGRPCClient(server.grpc_address, retries=2) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL)


@pytest.mark.parametrize("message", [b"", b"not a message", b"\x3a" + b"\xff" * 11, b"\x3b" * 50])
async def test_a_grpc_message_that_is_none_is_the_callers_mistake(kserve, server, message):
    import grpc

    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_grpc_answer_carries_its_identity_and_an_unknown_model_is_not_found(kserve, server, recognizer):
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        call = stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL), metadata=[("x-request-id", CALLER)])
        assert list((await call).versions) == ["1"]
        identity = {
            "x-request-id": CALLER,
            "x-vani-bundle-digest": recognizer.bundle.digest,
            "x-vani-model": MODEL,
            "x-vani-version": "1",
        }
        assert dict(await call.trailing_metadata()) == identity
        lying = pb.ModelInferRequest(
            model_name=MODEL, inputs=[{"name": "audio", "datatype": "INT16", "shape": [5]}], raw_input_contents=[b"x"]
        )
        refused = {
            grpc.StatusCode.NOT_FOUND: partial(stub.ModelReady, pb.ModelReadyRequest(name="other")),
            grpc.StatusCode.INVALID_ARGUMENT: partial(stub.ModelInfer, lying),
        }
        for code, ask in refused.items():
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ask(metadata=[("x-request-id", CALLER)])
            assert error.value.code() == code
            assert error.value.trailing_metadata()["x-request-id"] == CALLER


def test_openai_transcribes_in_every_format(ai, recognizer, file, said):
    expected = recognizer.transcribe(file)

    def ask(**options):
        return ai.audio.transcriptions.create(file=("clip.wav", file), model=MODEL, **options)

    short = ask()
    assert short.text == said
    assert short.usage.type == "duration"
    assert ask(response_format="text") == f"{said}\n"
    assert said in ask(response_format="srt").replace("\n", " ")
    assert ask(response_format="vtt").startswith("WEBVTT\n")
    verbose = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (verbose.text, verbose.language) == (said, "vietnamese")
    assert float(verbose.duration) == pytest.approx(expected.duration_seconds, abs=0.001)
    assert [(word.word, word.start, word.end) for word in verbose.words] == [
        (word.text, word.start_seconds, word.end_seconds) for word in expected.words
    ]
    assert " ".join(segment.text.strip() for segment in verbose.segments) == said
    assert ask(response_format="verbose_json", timestamp_granularities=["segment"]).words is None
    scored = ask(include=["logprobs"])
    assert "".join(token.token for token in scored.logprobs).strip() == said
    assert all(token.logprob <= 0 for token in scored.logprobs)


def test_openai_hears_hints_and_the_language_that_it_is_told(ai, file, said):
    def ask(**options):
        return ai.audio.transcriptions.create(file=("clip.wav", file), model="whisper-1", **options).text

    assert ask(prompt="rửa bát", temperature=0) == said
    assert ask(language="vi") == said
    assert ask(language="hi") != said


def test_openai_streams_a_long_recording_in_pieces(ai, recognizer):
    long = long_file(70)
    events = list(ai.audio.transcriptions.create(file=("long.wav", long), model=MODEL, stream=True))
    deltas = [event.delta for event in events[:-1]]
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert len(deltas) > 1
    assert "".join(deltas) == events[-1].text == recognizer.transcribe(long).text


def test_openai_raises_its_own_errors(ai, file):
    def ask(data: bytes = file, **options):
        return ai.audio.transcriptions.create(**{"file": ("clip.wav", data), "model": MODEL, **options})

    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="other")
    assert missing.value.code == "model_not_found"
    assert missing.value.body["message"] == "model 'other' is not served here; vani-demo is"
    with pytest.raises(openai.BadRequestError, match="language 'xx' is not one of this model's"):
        ask(language="xx")
    with pytest.raises(openai.BadRequestError, match="response_format 'diarized_json' is not offered"):
        ask(response_format="diarized_json")
    with pytest.raises(openai.UnprocessableEntityError, match="the audio cannot be used"):
        ask(b"")
    with pytest.raises(openai.APIStatusError) as unsupported:
        ask(b"hello there, this is no audio")
    assert unsupported.value.status_code == 415
    with pytest.raises(openai.BadRequestError, match="language 'xx'"):
        list(ask(stream=True, language="xx"))
    with pytest.raises(openai.UnprocessableEntityError):
        list(ask(b"", stream=True))


def test_openai_lists_the_models(ai):
    assert [(model.id, model.object) for model in ai.models.list()] == [(MODEL, "model")]
    assert ai.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("other")


def test_lists_of_models_serve_every_protocol(client, recognizer):
    assert client.get("/v2/models").json() == {"models": [MODEL]}
    assert client.get("/v1/models").json()["models"] == [MODEL]
    assert client.get(f"/v1/models/{MODEL}").json()["ready"] is True
    (listed,) = client.get("/models").json()
    assert (listed["id"], listed["bundle_digest"]) == (MODEL, recognizer.bundle.digest)
    assert client.get("/languages").json() == sorted(recognizer.bundle.languages) == ["hi", "vi"]


def test_asr_answers_one_as_one_and_a_list_as_a_list(client, recognizer):
    vi, hi = ({"audio_base64": text64(audio(code)), "lang": code} for code in ("vi", "hi"))
    one = client.post("/asr", json=vi).json()
    expected = recognizer.transcribe(audio("vi"), "vi")
    assert set(one) == {"transcription", "lang", "decoding", "duration_seconds", "words"}
    assert (one["transcription"], one["lang"], one["decoding"]) == (expected.text, "vi", "ctc")
    for body in ([vi, hi], {"inputs": [vi, hi]}, {"dataframe_records": [vi, hi]}):
        assert [answer["lang"] for answer in client.post("/asr", json=body).json()] == ["vi", "hi"]


ASR_REFUSALS = {
    "no object": ([1], 400, "INVALID_REQUEST"),
    "nothing": ([], 400, "INVALID_REQUEST"),
    "no audio": ({"lang": "vi"}, 400, "INVALID_REQUEST"),
    "no base64": ({"audio_base64": "%"}, 400, "INVALID_REQUEST"),
    "an unknown language": ({"audio_base64": text64(b"x"), "lang": "xx"}, 400, "INVALID_REQUEST"),
    "RNN-T": ({"audio_base64": text64(b"x"), "decoding": "rnnt"}, 400, "INVALID_REQUEST"),
    "text": ({"audio_base64": text64(b"hello there, this is no audio")}, 415, "UNSUPPORTED_AUDIO"),
    "an empty file": ({"audio_base64": ""}, 422, "INVALID_AUDIO"),
}


@pytest.mark.parametrize(("body", "status", "code"), ASR_REFUSALS.values(), ids=ASR_REFUSALS.keys())
def test_asr_refuses_with_a_code_and_a_sentence(client, body, status, code):
    answer = client.post("/asr", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error_code", "message"}
    assert answer.json()["error_code"] == code


EVERYWHERE = {
    "an answer": ("POST", INFER, {"json": v2(audio("vi"))}, 200),
    "a binary answer": ("POST", INFER, dict(zip(("content", "headers"), binary(audio("vi")), strict=True)), 200),
    "a refusal by the route": ("POST", INFER, {"json": {}}, 400),
    "a refusal by the framework": ("GET", "/asr", {}, 405),
    "no route": ("GET", "/nothing", {}, 404),
    "a refusal of audio": ("POST", "/transcribe", {"files": {"file": b"text, no audio"}}, 415),
    "OpenAI's refusal": ("POST", "/v1/audio/transcriptions", {"files": {"file": b""}}, 422),
    "metrics": ("GET", "/metrics", {}, 200),
}


@pytest.mark.parametrize("asked", EVERYWHERE.values(), ids=EVERYWHERE.keys())
def test_every_answer_says_which_bytes_gave_it(client, recognizer, asked):
    method, path, options, status = asked
    headers = {**options.get("headers", {}), "X-Request-Id": CALLER}
    answer = client.request(method, path, **{**options, "headers": headers})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == CALLER
    assert answer.headers["x-vani-bundle-digest"] == recognizer.bundle.digest
    assert (answer.headers["x-vani-model"], answer.headers["x-vani-version"]) == (MODEL, recognizer.bundle.version)


def test_an_answer_about_no_model_names_none(client):
    answer = client.post("/v2/models/other/infer", json=v2(b"x"))
    assert answer.status_code == 404
    assert "x-vani-bundle-digest" not in answer.headers
    assert answer.headers["x-request-id"]


def test_a_request_id_that_is_not_safe_to_log_is_replaced(client, server):
    for given in ("a b", "x" * 129, "a\tb", "é"):
        sent = client.get("/models", headers={"X-Request-Id": given.encode()}).headers["x-request-id"]
        assert sent != given
        assert server.log_lines(f"request_id={sent}")


def test_a_dictation_shows_partials_then_finals_then_that_it_is_done(server, recognizer, said):
    with connect(socket_url(server, f"?model={MODEL}&language=vi")) as socket:
        ready = json.loads(socket.recv(timeout=20))
        assert ready == {"type": "ready", "model": MODEL, "bundle_digest": recognizer.bundle.digest}
        assert socket.response.headers["x-vani-bundle-digest"] == recognizer.bundle.digest
        samples = pcm("vi")
        socket.send(samples[:24_000].tobytes())
        events = [json.loads(socket.recv(timeout=20))]
        socket.send(samples[24_000:].tobytes())
        socket.send('{"type": "end"}')
        events += [json.loads(message) for message in socket]
    *partials, final, done = events
    assert {event["type"] for event in partials} == {"partial"}
    assert partials[0]["text"].split()[0] == said.split()[0]
    assert (final["type"], final["text"], final["language"]) == ("final", said, "vi")
    assert " ".join(word["text"] for word in final["words"]) == said
    assert done == {"type": "done", "duration_seconds": len(samples) / RATE_HZ}
    assert socket.close_code == 1000
    until(server.idle)


def until_closed(socket: ClientConnection) -> list[dict]:
    events = []
    with suppress(ConnectionClosed):
        while True:
            events.append(json.loads(socket.recv(timeout=20)))
    return events


DICTATION_REFUSALS = {
    "an unknown model": ("?model=other", None, "MODEL_NOT_FOUND"),
    "an unknown language": ("?language=xx", None, "INVALID_REQUEST"),
    "no JSON": ("", "{", "INVALID_REQUEST"),
    "an unknown message": ("", '{"type": "pause"}', "INVALID_REQUEST"),
    "a file": ("", wav(pcm("vi")), "INVALID_REQUEST"),
}


@pytest.mark.parametrize(("query", "message", "code"), DICTATION_REFUSALS.values(), ids=DICTATION_REFUSALS.keys())
def test_a_dictation_that_goes_wrong_says_why_and_closes(server, query, message, code):
    with connect(socket_url(server, query)) as socket:
        if message is not None:
            assert json.loads(socket.recv(timeout=20))["type"] == "ready"
            socket.send(message)
        error = until_closed(socket)[-1]
    assert (error["type"], error["error_code"]) == ("error", code)
    assert error["message"]
    assert socket.close_code == 1008
    until(server.idle)


def test_what_was_said_before_a_wrong_message_is_not_lost(server, said):
    with connect(socket_url(server)) as socket:
        socket.send(pcm("vi").tobytes())
        socket.send("{")
        events = until_closed(socket)
    assert " ".join(event["text"] for event in events if event["type"] == "final") == said
    assert events[-1]["type"] == "error"


def test_a_dictation_that_went_wrong_is_not_done(server):
    with connect(socket_url(server)) as socket:
        socket.send("{")
        assert "done" not in [event["type"] for event in until_closed(socket)]


def test_a_speaker_who_leaves_holds_nothing(server):
    for _ in range(3):
        with connect(socket_url(server)) as socket:
            socket.recv(timeout=20)
            socket.send(np.tile(pcm("vi"), 5).tobytes())
            socket.socket.close()
    until(server.idle)
    assert not server.log_lines("Traceback")
