"""predictor.engine.choice: the engine that is asked for, or the fastest there is, and the reason in the log."""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest
import small_whisper
import torch

from pipelines import conformer
from pipelines.replicas import conformer as replicas
from predictor import bundle
from predictor.engine import BatchRule, choice
from predictor.engine.choice import GPU_RULE, for_gpu
from predictor.engine.onnx import OnnxEngine
from predictor.errors import InvalidBundle
from predictor.features import pad
from predictor.settings import EMBEDDED_BUNDLE

needs_openvino = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="needs the extra vani[openvino]")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A bundle with something for every engine that is installed."""
    ir = "fp32" if importlib.util.find_spec("openvino") else ""
    directory = tmp_path_factory.mktemp("bundles") / "full"
    return small_whisper.write(directory, small_whisper.network(), weights=True, ir=ir, graph=True)


@pytest.fixture(scope="module")
def indic(tmp_path_factory):
    published = tmp_path_factory.mktemp("hub") / "model"
    replicas.write(published)
    return conformer.convert(published, tmp_path_factory.mktemp("made") / "bundle", conformer.Options())


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "predictor.engine.choice")
    return caplog


def test_a_bundle_of_one_graph_is_run_by_onnx_runtime_and_the_log_says_why(log):
    loaded = choice.load(bundle.read(EMBEDDED_BUNDLE))
    assert (type(loaded.engine), loaded.transducer, loaded.name) == (OnnxEngine, None, "ONNX Runtime")
    (line,) = log.messages
    assert "is run by ONNX Runtime; not torch: the bundle holds no weights for it" in line
    assert "; not openvino: the bundle holds no OpenVINO IR" in line


@needs_openvino
@without_gpu
def test_auto_takes_openvino_where_the_processor_has_bf16_and_onnx_runtime_elsewhere(full, log):
    loaded = choice.load(full)
    (line,) = log.messages
    assert "not torch: there is no CUDA device" in line
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        assert loaded.name == "OpenVINO, bf16"
    else:
        assert "not openvino: this processor has no bf16" in line
        assert loaded.name == "ONNX Runtime"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("onnx", "ONNX"), pytest.param("openvino", "OpenVINO", marks=needs_openvino), ("torch", "PyTorch")],
)
def test_what_is_asked_for_is_taken_with_the_rule_that_is_given(full, kind, name):
    loaded = choice.load(full, BatchRule(streams=3), kind)
    assert loaded.name.startswith(name)
    assert loaded.engine.rule.streams == 3
    frames = small_whisper.features(90)
    (emission,) = loaded.engine.infer(pad([frames]))
    (expected,) = OnnxEngine(full).infer(pad([frames]))
    assert emission.log_probs.max(axis=1) == pytest.approx(expected.log_probs.max(axis=1), abs=0.2)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("torch", "the engine 'torch' is asked for, but the bundle holds no weights for it: convert the model with"),
        ("openvino", "the engine 'openvino' is asked for, but the bundle holds no OpenVINO IR: convert the model with"),
    ],
)
def test_what_the_bundle_has_no_file_for_is_refused_with_what_to_do(kind, reason):
    with pytest.raises(InvalidBundle, match=reason):
        choice.load(bundle.read(EMBEDDED_BUNDLE), kind=kind)


@needs_openvino
@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_what_is_not_installed_is_refused_with_what_to_do(full, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(
        InvalidBundle, match=rf"{kind}' is asked for, but it is not installed: pip install 'vani\[{kind}]"
    ):
        choice.load(full, kind=kind)
    assert choice.load(full).name == "ONNX Runtime"


@needs_openvino
@pytest.mark.parametrize(
    "problem", ["OSError('libcuda.so.1: cannot open shared object file')", "ImportError('version')"]
)
def test_a_library_that_cannot_be_loaded_is_refused_with_what_to_do_and_passed_over_by_auto(
    full, problem, monkeypatch, tmp_path, log
):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(f"raise {problem}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [
        name for name in sys.modules if name.split(".")[0] == "openvino" or name == "predictor.engine.openvino"
    ]:
        monkeypatch.delitem(sys.modules, name)
    sentence = f"it cannot be imported ({problem.split('(', maxsplit=1)[0]}): install 'vani[openvino]' anew"
    with pytest.raises(InvalidBundle) as refused:
        choice.load(full, kind="openvino")
    assert sentence in str(refused.value)
    assert choice.load(full).name.startswith(("ONNX Runtime", "PyTorch on cuda"))


def test_a_conformer_is_run_by_onnx_runtime_with_its_transducer_and_by_nothing_else(indic, log):
    loaded = choice.load(indic, BatchRule(streams=2))
    assert loaded.transducer is not None
    assert loaded.engine.rule.streams == 2
    if "CUDA" not in loaded.name:
        assert loaded.engine.rule.max_rows == 1
        assert "is run by ONNX Runtime; not CUDA: " in log.messages[0]
    with pytest.raises(InvalidBundle, match="'torch' is asked for, but an indic-conformer is run by 'onnx' alone"):
        choice.load(indic, kind="torch")


def test_on_a_gpu_rows_are_batched_with_the_streams_asked_for_or_as_asked_for():
    assert for_gpu(BatchRule(streams=5)).streams == 5
    assert for_gpu(BatchRule(streams=5)).max_rows == GPU_RULE.max_rows > 1
    own = BatchRule(streams=1, max_rows=4, max_padded_frames=4_000)
    assert for_gpu(own) == own
    assert GPU_RULE.fits([3_000] * 32)
    assert not GPU_RULE.fits([3_000, 300])
