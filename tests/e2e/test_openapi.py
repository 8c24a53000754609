"""The OpenAPI document is true, and nothing that is made from it makes the server fail."""

import json
import warnings

import pytest
import schemathesis
from asking import INFER, MODEL, audio, binary, text64, v2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from serving import serving

from predictor.settings import EMBEDDED_BUNDLE

EXAMPLES = 20  # for an operation and a mode: 30 operations in a few seconds
TRUE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
]
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that may be told to load and unload what it likes."""
    directory = tmp_path_factory.mktemp("server")
    with serving(directory / "log", model_repository=EMBEDDED_BUNDLE.parent) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as open_client:
        yield open_client


@pytest.fixture(scope="module")
def described(server):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


OPERATIONS = {
    ("GET", "/health"), ("GET", "/v2/health/ready"), ("GET", "/v2/health/live"), ("GET", "/v2"), ("GET", "/v2/models"),
    ("GET", "/v2/models/{model_name}"), ("GET", "/v2/models/{model_name}/ready"),
    ("GET", "/v2/models/{model_name}/versions/{model_version}"),
    ("GET", "/v2/models/{model_name}/versions/{model_version}/ready"),
    ("GET", "/models"), ("GET", "/languages"), ("GET", "/v1/models"), ("GET", "/v1/models/{model_name}"),
    ("POST", "/v2/models/{model_name}/infer"), ("POST", "/v2/models/{model_name}/versions/{model_version}/infer"),
    ("POST", "/v1/models/{model_name}:predict"), ("POST", "/v1/audio/transcriptions"), ("POST", "/transcribe"),
    ("POST", "/asr"), ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/{model_name}/load"),
    ("POST", "/v2/repository/models/{model_name}/unload"),
}  # fmt: skip
INFERENCE = sorted(path for method, path in OPERATIONS if method == "POST" and "repository" not in path)


def test_every_route_is_described(described):
    found = {(operation.method.upper(), operation.path) for operation in map(ok, described.get_all_operations())}
    assert found == OPERATIONS


def ok(result):
    return result.ok()


def name_the_model(case: Case) -> None:
    """So that it is the body which is looked at."""
    served = {"model_name": MODEL, "model_version": "1"}
    case.path_parameters = {name: served.get(name, value) for name, value in (case.path_parameters or {}).items()}


def check(case: Case, *more) -> None:
    """Send a case and hold the answer against the document."""
    response = case.call(timeout=60)
    hurried = response.status_code == 504 and "X-Request-Timeout" in (case.headers or {})  # as it was told to
    case.validate_response(response, checks=[*([] if hurried else [not_a_server_error]), *TRUE, *more])


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_what_follows_the_document_is_answered_as_the_document_says(described, method, path):
    @QUICK
    @given(case=described[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def sent(case: Case) -> None:
        (case.headers or {}).pop("X-Request-Timeout", None)  # or most would be too late
        if path in INFERENCE:
            name_the_model(case)
        check(case)

    sent()


@pytest.mark.parametrize("path", INFERENCE)
def test_what_does_not_follow_the_document_is_refused_as_the_document_says(described, path):
    @QUICK
    @given(case=described[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def sent(case: Case) -> None:
        name_the_model(case)
        check(case, checks.negative_data_rejection)

    sent()


CLIP = {"audio_base64": text64(audio("vi"))}
REQUESTS = {
    "OpenAI's": ("/v1/audio/transcriptions", {"files": {"file": audio("vi")}}),
    "a form": ("/transcribe", {"files": {"file": audio("vi")}}),
    "one recording": ("/asr", {"json": CLIP}),
    "two recordings": ("/asr", {"json": [CLIP, {**CLIP, "lang": "vi"}]}),
    "V2": ("/v2/models/{model_name}/infer", {"json": v2(audio("vi"))}),
    "V1": ("/v1/models/{model_name}:predict", {"json": {"instances": [text64(audio("hi"))]}}),
    "the index": ("/v2/repository/index", {"json": {}}),
    "loading": ("/v2/repository/models/{model_name}/load", {"json": {}}),
}


@pytest.mark.parametrize(("path", "request_"), REQUESTS.values(), ids=REQUESTS.keys())
def test_an_answer_has_what_the_document_promises(client, described, path, request_):
    built = client.build_request("POST", path.format(model_name=MODEL), **request_)
    built.read()
    answer = client.send(built)
    assert answer.status_code == 200
    described[path]["POST"].validate_response(answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
codes = st.sampled_from(["vi", "hi", "xx", "", None]) | json_values
files = st.sampled_from([text64(audio("vi")[:200]), text64(b"RIFF"), "", "%", "AAAA"]) | json_values
asr_fields = {"audio_base64": files, "lang": codes, "decoding": json_values, "hotwords": json_values}
asr_items = st.fixed_dictionaries({}, optional=asr_fields)
asr_bodies = asr_items | st.lists(asr_items, max_size=3) | st.fixed_dictionaries({"inputs": json_values | asr_items})


@settings(QUICK, max_examples=100)
@given(body=asr_bodies)
def test_no_asr_body_makes_the_server_fail(client, body):
    answer = client.post("/asr", content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 413, 415, 422)
    assert answer.status_code == 200 or set(answer.json()) == {"error_code", "message"}


fields = st.dictionaries(
    st.sampled_from(
        ["model", "language", "prompt", "response_format", "temperature", "stream", "include[]", "hotwords",
         "timestamp_granularities[]", "model_type", "keywords", "chunking_strategy"]
    ),
    st.sampled_from(["", "vi", "json", "verbose_json", "srt", "true", "word", "nan", "logprobs", "rửa", MODEL])
    | st.text(max_size=8),
    max_size=4,
)  # fmt: skip


@settings(QUICK, max_examples=100)
@given(form=fields, file=st.sampled_from([audio("vi"), audio("hi")[:99], b"", b"text"]) | st.binary(max_size=40))
def test_no_form_makes_the_server_fail(client, form, file):
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        answer = client.post(path, data=form, files={"file": ("a", file)})
        assert answer.status_code in (200, 400, 404, 413, 415, 422)


@settings(QUICK, max_examples=60)
@given(
    content=st.binary(max_size=60) | st.builds(lambda cut: binary(audio("vi"))[0][:cut], st.integers(0, 8_000)),
    content_type=st.sampled_from(
        ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=x", "audio/wav", "text/plain;="]
    )
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
    length=st.sampled_from(["", "0", "5", "-1", "1e3", "9" * 30]) | st.none(),
)
def test_no_bytes_make_the_server_fail(client, content, content_type, length):
    headers = {"Content-Type": content_type} | ({} if length is None else {"Inference-Header-Content-Length": length})
    for path in (INFER, "/transcribe", "/v1/audio/transcriptions", "/asr", "/v2/repository/index"):
        assert client.post(path, content=content, headers=headers).status_code in (200, 400, 404, 415, 422)


def test_nothing_of_all_this_was_unforeseen(server):
    assert not server.log_lines("Traceback")
    assert not server.log_lines("unforeseen")
