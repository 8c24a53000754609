"""Several models and versions in one process, loaded and unloaded while it serves."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from asking import MODEL, audio, long_file, outputs, v2
from serving import serving, until
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

BUNDLES = EMBEDDED_BUNDLE.parent
OTHER = "vani-other"


def copied(bundle: str, to: Path, **manifest: str) -> Path:
    shutil.copytree(BUNDLES / bundle, to)
    path = to / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **manifest}))
    return to


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The three demo bundles; another model in the versions 2 and 10; one whose graph was altered, and no bundle."""
    directory = tmp_path_factory.mktemp("repository")
    for bundle in BUNDLES.iterdir():
        (directory / bundle.name).symlink_to(bundle)
    copied("vani-demo-2", directory / "second", name=OTHER, version="2")
    copied("vani-demo-3", directory / "tenth", name=OTHER, version="10")
    broken = copied("vani-demo-1", directory / "broken", name="vani-broken") / "model.onnx"
    graph = bytearray(broken.read_bytes())
    graph[1000] ^= 1
    broken.write_bytes(graph)
    (directory / "nonsense").mkdir()
    (directory / "nonsense" / "manifest.json").write_text("[1, 2")
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository):
    two = f"{BUNDLES / 'vani-demo-1'}:{BUNDLES / 'vani-demo-3'}"
    with serving(tmp_path_factory.mktemp("server") / "log", bundle=two, model_repository=repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as open_client:
        yield open_client


@pytest.fixture
def stub(server, kserve):
    """KServe's messages, of the service that Triton's clients speak to as well."""
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(server.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)


@contextmanager
def loaded(client: httpx.Client, name: str, version: str | None = None) -> Iterator[dict]:
    body = {"parameters": {"version": version}} if version else {}
    answer = client.post(f"/v2/repository/models/{name}/load", json=body)
    assert answer.status_code == 200, answer.text
    try:
        yield answer.json()
    finally:
        assert client.post(f"/v2/repository/models/{name}/unload").status_code in (200, 404)


def states(client: httpx.Client, **body) -> dict[tuple[str, str], str]:
    index = client.post("/v2/repository/index", json=body).json()
    return {(entry["name"], entry["version"]): entry["state"] for entry in index}


@pytest.mark.parametrize("version", ["1", "3"])
def test_each_version_answers_as_what_it_is(client, version):
    recognizer = Recognizer.load(BUNDLES / f"vani-demo-{version}")
    answer = client.post(f"/v2/models/{MODEL}/versions/{version}/infer", json=v2(audio("hi"), language="hi"))
    assert outputs(answer)["text"] == [recognizer.transcribe(audio("hi"), "hi").text]
    digest = recognizer.bundle.digest
    assert (answer.json()["model_version"], answer.json()["parameters"]["bundle_digest"]) == (version, digest)
    assert (answer.headers["x-vani-version"], answer.headers["x-vani-bundle-digest"]) == (version, digest)
    metadata = client.get(f"/v2/models/{MODEL}/versions/{version}").json()
    assert (metadata["versions"], metadata["parameters"]["bundle_digest"]) == (["1", "3"], digest)
    assert client.get(f"/v2/models/{MODEL}/versions/{version}/ready").json() == {"name": MODEL, "ready": True}


def test_a_bare_name_means_the_highest_version_on_every_route(client):
    assert client.post(f"/v2/models/{MODEL}/infer", json=v2(audio("vi"))).json()["model_version"] == "3"
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        assert client.post(path, files={"file": audio("vi")}).headers["x-vani-version"] == "3"
    headers = {"Content-Type": "audio/ogg"}
    answer = client.post(f"/v1/models/{MODEL}:predict", content=audio("vi"), headers=headers)
    assert answer.headers["x-vani-version"] == "3"


def test_an_unknown_version_is_not_found_and_the_served_ones_are_named(client):
    answer = client.post(f"/v2/models/{MODEL}/versions/2/infer", json=v2(audio("vi")))
    assert answer.status_code == 404
    assert answer.json()["error"] == (
        "model 'vani-demo version 2' is not served here; vani-demo version 1, vani-demo version 3 is"
    )


def test_where_several_are_served_health_names_all_and_an_answer_about_none_names_none(client):
    answer = client.get("/health")
    assert [model["version"] for model in answer.json()["models"]] == ["1", "3"]
    assert "x-vani-bundle-digest" not in answer.headers


def test_the_index_has_what_is_served_and_what_could_be(client):
    assert states(client) == {
        ("vani-broken", "1"): "UNAVAILABLE",
        (MODEL, "1"): "READY",
        (MODEL, "2"): "UNAVAILABLE",
        (MODEL, "3"): "READY",
        (OTHER, "2"): "UNAVAILABLE",
        (OTHER, "10"): "UNAVAILABLE",
    }
    assert states(client, ready=True) == {(MODEL, "1"): "READY", (MODEL, "3"): "READY"}
    assert client.post("/v2/repository/index").status_code == 200


def test_an_index_is_asked_for_with_true_or_false(client):
    assert client.post("/v2/repository/index", json={"ready": "yes"}).status_code == 400


def test_a_model_is_loaded_answers_and_is_unloaded(client, server):
    with loaded(client, OTHER) as answer:
        assert (answer["name"], answer["version"]) == (OTHER, "10")
        inferred = client.post(f"/v2/models/{OTHER}/infer", json=v2(audio("vi")))
        assert inferred.headers["x-vani-bundle-digest"] == answer["bundle_digest"]
        assert inferred.json()["model_version"] == "10"
        assert server.metric("vani_asr_bundle_info", model=OTHER) == 1
        assert states(client)[OTHER, "10"] == "READY"
    assert client.post(f"/v2/models/{OTHER}/infer", json=v2(audio("vi"))).status_code == 404
    assert server.metric("vani_asr_bundle_info", model=OTHER) == 0
    assert states(client)[OTHER, "10"] == "UNAVAILABLE"


def test_a_version_is_loaded_by_its_number(client):
    with loaded(client, OTHER, "2") as answer:
        assert answer["version"] == "2"
        assert client.post(f"/v2/models/{OTHER}/infer", json=v2(audio("vi"))).json()["model_version"] == "2"
        with loaded(client, OTHER, "10"):
            assert client.post(f"/v2/models/{OTHER}/infer", json=v2(audio("vi"))).json()["model_version"] == "10"
            older = client.post(f"/v2/models/{OTHER}/versions/2/infer", json=v2(audio("vi")))
            assert older.json()["model_version"] == "2"


def test_a_bundle_that_was_altered_is_refused_and_nothing_else_changes(client, server):
    before = states(client)
    answer = client.post("/v2/repository/models/vani-broken/load", json={})
    assert answer.status_code == 500
    assert "model.onnx does not have the manifest's SHA-256" in answer.json()["error"]
    assert str(BUNDLES) not in answer.text
    assert states(client) == before
    assert client.post(f"/v2/models/{MODEL}/infer", json=v2(audio("vi"))).status_code == 200
    assert server.log_lines("bundle broken is refused: model.onnx does not have the manifest's SHA-256")


def test_what_is_not_there_cannot_be_loaded_or_unloaded(client):
    for name in ("nothing", "..", "%2e%2e%2fvani-demo-1"):
        assert client.post(f"/v2/repository/models/{name}/load", json={}).status_code == 404
        assert client.post(f"/v2/repository/models/{name}/unload").status_code == 404
    unknown = client.post(f"/v2/repository/models/{OTHER}/load", json={"parameters": {"version": "7"}})
    assert unknown.status_code == 404
    wrong = client.post(f"/v2/repository/models/{OTHER}/load", json={"parameters": {"version": 2}})
    assert (wrong.status_code, wrong.json()["error"]) == (400, "parameters.version must be text")


def test_requests_in_flight_are_finished_while_their_model_is_unloaded(client, server):
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.client() as asker:
            answers.append(asker.post("/transcribe", files={"file": long_file(90)}, data={"model": OTHER}))

    with loaded(client, OTHER):
        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        until(lambda: server.metric("vani_asr_audio_seconds_in_flight") > 350)
    assert client.post(f"/v2/models/{OTHER}/infer", json=v2(audio("vi"))).status_code == 404
    for thread in asking:
        thread.join()
    assert [(answer.status_code, answer.json()["model"]) for answer in answers] == [(200, OTHER)] * 4


def test_triton_over_http_loads_and_unloads(client, server):
    with triton.InferenceServerClient(server.address.removeprefix("http://")) as by_triton:
        by_triton.load_model(OTHER)
        assert by_triton.is_model_ready(OTHER)
        by_triton.unload_model(OTHER)
        assert not by_triton.is_model_ready(OTHER)
        with pytest.raises(InferenceServerException, match=r"model\.onnx does not have the manifest's SHA-256"):
            by_triton.load_model("vani-broken")


def test_grpc_loads_and_unloads(client, stub):
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    def code(ask, request) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as error:
            ask(request)
        return error.value.code()

    assert code(stub.ModelReady, pb.ModelReadyRequest(name=OTHER)) == grpc.StatusCode.NOT_FOUND
    assert stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=OTHER)).isLoaded
    assert stub.ModelReady(pb.ModelReadyRequest(name=OTHER)).ready
    assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name=OTHER)).versions) == ["10"]
    assert stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=OTHER)).isUnloaded
    assert code(stub.ModelReady, pb.ModelReadyRequest(name=OTHER)) == grpc.StatusCode.NOT_FOUND
    assert (
        code(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=OTHER)) == grpc.StatusCode.NOT_FOUND
    )
    assert code(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="none")) == grpc.StatusCode.NOT_FOUND
    assert (
        code(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="vani-broken"))
        == grpc.StatusCode.INTERNAL
    )
    assert stub.ModelReady(pb.ModelReadyRequest(name=MODEL, version="1")).ready


def test_a_server_without_a_model_is_not_ready_until_one_is_loaded(client):
    try:
        assert client.post(f"/v2/repository/models/{MODEL}/unload").json() == {"name": MODEL, "unload": True}
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v1/models").json()["models"] == []
        assert client.post("/transcribe", files={"file": audio("vi")}).status_code == 404
    finally:
        for version in ("1", "3"):
            client.post(f"/v2/repository/models/{MODEL}/load", json={"parameters": {"version": version}})
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.post("/transcribe", files={"file": audio("vi")}).headers["x-vani-version"] == "3"
