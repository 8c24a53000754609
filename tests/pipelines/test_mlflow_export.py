"""pipelines.mlflow_export, and the model that it writes: in this process, and behind MLflow's own server."""

import ast
import base64
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import REPOSITORY, free_port, until

from demo import rates, testset
from pipelines.errors import Permanent
from pipelines.mlflow_export import PACKAGE, REQUIREMENTS, export, requirements
from predictor.engine import BatchRule
from predictor.errors import InvalidBundle
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

VI, HI = ((testset.DIRECTORY / "audio" / f"{name}.opus").read_bytes() for name in ("vi-natural-021", "hi-natural-024"))
START_SECONDS = 120
PAGE = REPOSITORY / "docs" / "mlflow.md"

# MLflow's own, raised while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture(scope="module")
def installed():
    if not find_spec("mlflow"):
        pytest.skip("mlflow is not installed: pip install 'vani[tracking]'")


@pytest.fixture(scope="module")
def exported(installed, tmp_path_factory):
    out = tmp_path_factory.mktemp("mlflow") / "a model"
    export(EMBEDDED_BUNDLE, out)
    return out


def loaded(directory: Path):
    """The model as `mlflow.pyfunc` gives it to a program, whose search path it does not leave as it was."""
    import mlflow

    before = sys.path
    try:
        return mlflow.pyfunc.load_model(str(directory))
    finally:
        sys.path = before


@pytest.fixture(scope="module")
def model(exported):
    return loaded(exported)


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """The address of `mlflow models serve`, as a process of its own that is gone afterwards."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `uvicorn` from there
    command = ["-m", "mlflow", "models", "serve", "-m", str(exported), "-p", str(port), "--env-manager", "local"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=file,
            stderr=file,
            cwd=exported.parent,
            env={**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    try:
        until(answers, START_SECONDS)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(server: str, body: object, content_type: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server}/invocations", content=content, headers={"Content-Type": content_type}, timeout=120)


def expected(recognizer: Recognizer, data: bytes, language: str | None = None, decoding: str = "ctc") -> dict:
    transcript = recognizer.transcribe(data, language)
    return {
        "transcription": transcript.text,
        "lang": transcript.language,
        "decoding": decoding,
        "duration_seconds": transcript.duration_seconds,
        "words": [asdict(word) for word in transcript.words],
        "bundle_digest": recognizer.bundle.digest,
    }


# --- what is written ----------------------------------------------------------------------------


def test_the_model_is_source_and_files_and_says_which_bundle_it_holds(exported, recognizer):
    import mlflow

    described = mlflow.models.Model.load(str(exported))
    assert described.metadata["bundle_digest"] == recognizer.bundle.digest
    assert described.metadata["languages"] == ["vi", "hi"]
    assert described.flavors["python_function"]["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert not [path for path in exported.rglob("*") if path.suffix in {".pkl", ".pickle", ".joblib", ".pyc"}]
    [bundle] = (exported / "artifacts").iterdir()
    assert Recognizer.load(bundle).bundle.digest == recognizer.bundle.digest
    ours = {path.relative_to(PACKAGE): path.read_bytes() for path in PACKAGE.rglob("*.py")}
    code = exported / "code" / "predictor"
    assert {path.relative_to(code): path.read_bytes() for path in code.rglob("*.py")} == ours


def test_paths_may_be_in_any_language(installed, tmp_path):
    bundle, out = tmp_path / "tiếng Việt", tmp_path / "mới" / "mô hình"
    shutil.copytree(EMBEDDED_BUNDLE, bundle)
    digest = export(bundle, out).digest
    assert loaded(out).predict({"audio_base64": base64_of(VI)}).bundle_digest[0] == digest
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_requirements_are_what_is_installed_and_mlflow_adds_none(exported):
    assert (exported / "requirements.txt").read_text().split() == [f"{name}=={version(name)}" for name in REQUIREMENTS]


def test_columns_are_those_of_the_answers(exported, model):
    import mlflow
    import pandas as pd

    signature = mlflow.models.Model.load(str(exported)).signature
    assert {column.name: column.required for column in signature.inputs} == {
        "audio_base64": True,
        "lang": False,
        "decoding": False,
    }
    answer = model.predict(pd.DataFrame({"audio_base64": [base64_of(VI)]}))
    assert list(answer.columns) == signature.outputs.input_names()
    assert {p.name for p in signature.outputs.input_types()[4].dtype.properties} == set(answer.words[0][0])


@pytest.mark.parametrize(
    ("package", "part"), [("kenlm", {"language_models": {"vi": "vi.bin"}}), ("openvino", {"ir": "model.xml"})]
)
def test_what_a_part_of_the_bundle_needs_is_required_with_it(installed, recognizer, package, part):
    if not find_spec(package):
        pytest.skip(f"{package} is not installed")
    bundle = recognizer.bundle
    more = requirements(replace(bundle, graph=replace(bundle.graph, **part)))
    assert [*set(more) - {*requirements(bundle)}] == [f"{package}=={version(package)}"]


@pytest.fixture(scope="module")
def modules(exported):
    """The files of our modules that a process of its own has after it has loaded the model, by name."""
    code = (
        "import json, sys, mlflow; mlflow.pyfunc.load_model(sys.argv[1]); "
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if "
        "n.split('.')[0] in ('predictor', 'pipelines', 'demo') or n.startswith('code_model_')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported)],
        cwd=exported.parent,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: Path(file) for name, file in json.loads(done.stdout).items()}


def test_a_loaded_model_runs_the_code_that_came_with_it_wherever_ours_is_installed(exported, modules):
    assert "predictor.recognizer" in modules
    assert all(exported in file.parents for file in modules.values())


def test_what_that_code_imports_is_required(modules):
    imported = set()
    for file in modules.values():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    providers = packages_distributions()
    others = imported - sys.stdlib_module_names - {"predictor"}
    assert {"numpy", "onnxruntime", "soundfile"} <= others
    assert [name for name in others if not set(providers[name]) & {*REQUIREMENTS}] == []


# --- what is refused before anything is written -------------------------------------------------


def test_a_bundle_that_is_not_whole_is_not_exported_and_nothing_is_left_behind(installed, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(EMBEDDED_BUNDLE, broken)
    (broken / "vocabulary.json").write_text("{}")
    with pytest.raises(InvalidBundle, match=r"vocabulary\.json"):
        export(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_there_already_is_not_overwritten(exported, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for out in (tmp_path, kept, exported):
        with pytest.raises(Permanent, match="not empty"):
            export(EMBEDDED_BUNDLE, out)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["a#1", "a%20b"])
def test_a_path_that_mlflow_cannot_read_is_refused_with_the_reason(installed, tmp_path, name):
    bundle = shutil.copytree(EMBEDDED_BUNDLE, tmp_path / name)
    for directory, out in ((bundle, tmp_path / "out"), (EMBEDDED_BUNDLE, tmp_path / "out" / name)):
        with pytest.raises(Permanent, match="takes a path for a URI"):
            export(directory, out)
    assert not (tmp_path / "out").exists()


def test_without_mlflow_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", None)
    with pytest.raises(Permanent, match=r"vani\[tracking\]"):
        export(EMBEDDED_BUNDLE, tmp_path / "out")


# --- the model in this process ------------------------------------------------------------------


def test_rows_are_answered_in_their_order(model, recognizer):
    import pandas as pd

    rows = [(VI, "vi"), (HI, "hi")] * 4
    frame = pd.DataFrame([{"audio_base64": base64_of(data), "lang": code} for data, code in rows])
    answers = model.predict(frame)
    assert answers.to_dict(orient="records") == [expected(recognizer, data, code) for data, code in rows]


@pytest.mark.parametrize("nothing", [None, "", math.nan])
def test_a_language_or_decoding_that_is_left_out_is_identified_and_ctc(model, recognizer, nothing):
    import pandas as pd

    given_row = {"audio_base64": base64_of(VI), "lang": "vi", "decoding": "ctc"}
    frame = pd.DataFrame([given_row, {"audio_base64": base64_of(HI), "lang": nothing, "decoding": nothing}])
    for rows in (frame, frame.convert_dtypes()):  # the second has pandas' own sign for nothing
        answers = model.predict(rows).to_dict(orient="records")
        assert answers == [expected(recognizer, VI, "vi"), expected(recognizer, HI)]
        assert answers[1]["lang"] == "hi"


def test_greedy_is_another_word_for_ctc(model, recognizer):
    [answer] = model.predict({"audio_base64": base64_of(VI), "decoding": "greedy"}).to_dict(orient="records")
    assert answer == expected(recognizer, VI, decoding="greedy")


def test_no_rows_are_no_answers(model):
    import pandas as pd

    assert model.predict(pd.DataFrame({"audio_base64": []}, dtype=str)).empty


_CELLS = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.just(np.zeros(2)),
    st.binary(max_size=40).map(base64_of),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(audio=_CELLS, language=_CELLS, decoding=_CELLS)
def test_whatever_a_row_holds_that_is_no_recording_it_is_named_and_the_callers_fault(model, audio, language, decoding):
    import pandas as pd
    from mlflow.exceptions import MlflowException

    rows = [{"audio_base64": base64_of(VI)}, {"audio_base64": audio, "lang": language, "decoding": decoding}]
    with pytest.raises(MlflowException, match=r"^row 1: \S") as refused:
        model.unwrap_python_model().predict(None, pd.DataFrame(rows))
    assert refused.value.get_http_status_code() == 400


class Unplugged:
    """An engine whose accelerator is gone."""

    rule = BatchRule()

    def infer(self, batch):
        raise OSError("/dev/accelerator0 is gone")


def test_a_fault_of_ours_is_not_the_callers_and_tells_it_nothing(exported):
    from mlflow.exceptions import MlflowException

    model = loaded(exported)
    speech = model.unwrap_python_model()
    speech._recognizer = replace(speech._recognizer, engine=Unplugged())
    with pytest.raises(MlflowException) as failed:
        model.predict({"audio_base64": base64_of(VI)})
    assert (failed.value.error_code, failed.value.get_http_status_code()) == ("INTERNAL_ERROR", 500)
    assert "row 0: the transcription failed" in failed.value.message
    assert "accelerator" not in failed.value.serialize_as_json()


def test_another_bundle_than_the_exported_one_is_not_served(exported, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(exported, copy)
    [artifact] = (copy / "artifacts").iterdir()
    (artifact / "model.onnx").write_bytes(b"x" + (artifact / "model.onnx").read_bytes()[1:])
    with pytest.raises(InvalidBundle, match=r"model\.onnx does not have"):
        loaded(copy)
    shutil.rmtree(artifact)
    shutil.copytree(rates.BUNDLES / "vani-demo-2", artifact)  # whole, but another
    with pytest.raises(InvalidBundle, match="was exported"):
        loaded(copy)


# --- the model behind MLflow's server -----------------------------------------------------------

AUDIO = (base64_of(VI), base64_of(HI))
RECORDS = [{"audio_base64": AUDIO[0], "lang": "vi", "decoding": "ctc"}, {"audio_base64": AUDIO[1]}]
SHAPES = {
    "split": {"dataframe_split": {"columns": ["lang", "audio_base64"], "data": [["vi", AUDIO[0]], [None, AUDIO[1]]]}},
    "records": {"dataframe_records": RECORDS},
    "inputs, rows": {"inputs": RECORDS},
    "inputs, columns": {"inputs": {"audio_base64": AUDIO, "lang": ["vi", ""]}},
    "instances": {"instances": [{"audio_base64": AUDIO[0]}, {"audio_base64": AUDIO[1]}]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_request_gets_what_the_recognizer_hears(server, recognizer, shape):
    response = post(server, SHAPES[shape])
    assert response.status_code == 200, response.text
    assert response.json() == {"predictions": [expected(recognizer, VI, "vi"), expected(recognizer, HI)]}


def test_csv_is_read_too(server, recognizer):
    response = post(server, f"audio_base64,lang\n{AUDIO[0]},vi\n{AUDIO[1]},\n".encode(), "text/csv")
    assert response.json() == {"predictions": [expected(recognizer, VI, "vi"), expected(recognizer, HI)]}


def test_requests_side_by_side_do_not_mix(server, recognizer):
    wanted = {AUDIO[0]: expected(recognizer, VI), AUDIO[1]: expected(recognizer, HI)}
    with ThreadPoolExecutor(6) as pool:
        asked = AUDIO * 6
        answers = list(pool.map(lambda a: post(server, {"dataframe_records": [{"audio_base64": a}]}), asked))
    assert [answer.json()["predictions"] for answer in answers] == [[wanted[audio]] for audio in asked]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({"audio_base64": "@@@"}, "audio_base64 is not base64"),
        ({"audio_base64": None}, "audio_base64 must hold base64 text"),
        ({"lang": "vi"}, "audio_base64 must hold base64 text"),
        ({"audio_base64": ""}, "empty"),
        ({"audio_base64": base64_of(b"no recording")}, "format is not supported"),
        ({"audio_base64": base64_of(VI[:3000])}, "cut"),
        ({"audio_base64": AUDIO[0], "lang": "xx"}, "language 'xx' is not one of this model's: vi, hi"),
        ({"audio_base64": AUDIO[0], "lang": 7}, "lang must be text"),
        ({"audio_base64": AUDIO[0], "decoding": "rnnt"}, "no RNN-T decoder"),
        ({"audio_base64": AUDIO[0], "decoding": "beam"}, "'beam' is not offered"),
        ({"audio_base64": AUDIO[0], "decoding": ["ctc"]}, "decoding must be text"),
    ],
)
def test_the_row_that_is_wrong_is_named_with_the_reason(server, second, problem):
    response = post(server, {"dataframe_records": [{"audio_base64": AUDIO[0]}, second]})
    assert response.status_code == 400
    error = response.json()
    assert error["error_code"] == "INVALID_PARAMETER_VALUE"
    assert re.search(rf"Error: row 1: .*{re.escape(problem)}", error["message"])
    assert "stack_trace" not in error


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"\x00\xff garbage", "application/json", 400),
        (b"", "application/json", 400),
        ([], "application/json", 400),
        ({}, "application/json", 400),
        ({"dataframe_records": None}, "application/json", 400),
        ({"dataframe_records": []}, "application/json", 400),
        ({"dataframe_records": ["x"]}, "application/json", 400),
        ({"dataframe_records": [{"audio": AUDIO[0]}]}, "application/json", 400),
        ({"dataframe_split": {"columns": ["audio_base64"], "data": [[1, 2]]}}, "application/json", 400),
        ({"inputs": "x"}, "application/json", 400),
        ({"inputs": {"audio_base64": [1, 2]}}, "application/json", 400),
        ({"instances": [[["x"]]]}, "application/json", 400),
        (b"x\ny\n", "text/csv", 400),
        (VI, "audio/ogg", 415),
    ],
)
def test_a_request_that_is_none_is_the_clients_fault_and_the_server_goes_on(server, body, content_type, status):
    assert post(server, body, content_type).status_code == status
    assert httpx.get(f"{server}/ping", timeout=20).is_success


def test_the_example_in_the_model_is_a_request(server, exported, recognizer):
    [answer] = post(server, (exported / "serving_input_example.json").read_bytes()).json()["predictions"]
    assert (answer["transcription"], answer["duration_seconds"]) == ("", 1.0)
    assert answer["bundle_digest"] == recognizer.bundle.digest


def test_the_request_on_the_page_is_answered_as_the_page_says(server):
    [(command, output)] = re.findall(
        r"```console\n(printf .*?)```\n\n```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert "localhost:5001" in command
    done = subprocess.run(
        ["bash", "-c", command.replace("localhost:5001", server.removeprefix("http://"))],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == output
