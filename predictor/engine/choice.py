"""Which engine runs a bundle, by what is installed, what the machine has and what the bundle holds.

    torch      a CUDA device, and weights in the bundle
    openvino   installed, an IR in the bundle, and a processor that computes in bf16, where it is the faster one by far
    onnx       everywhere else

An `indic-conformer` is ONNX graphs, which ONNX Runtime runs, on CUDA where both it and the machine have it.
"""

import ctypes
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import onnxruntime

from predictor.bundle import Bundle, ConformerGraphs
from predictor.engine import BatchRule, Engine, Transducer
from predictor.engine.onnx import OnnxEngine
from predictor.errors import InvalidBundle

EngineKind = Literal["auto", "onnx", "openvino", "torch"]

# A GPU is filled by rows, not by calls: they wait 5 ms for others of about their length, up to 16 minutes of audio.
GPU_RULE = BatchRule(streams=2, max_rows=64, max_padded_frames=96_000, max_padding_share=0.2, wait_seconds=0.005)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine, its name for people, and what a transducer's search needs where the model has one."""

    engine: Engine
    transducer: Transducer | None
    name: str


def load(bundle: Bundle, rule: BatchRule | None = None, kind: EngineKind = "auto") -> Loaded:
    """The engine asked for, or the best there is; the log says which, and why not a faster one.

    `rule` is for a CPU; on a GPU its streams are kept and rows are batched, unless it has a batch of its own. Raises
    InvalidBundle, with what to do about it where it is an engine that is asked for and cannot be had.
    """
    rule = rule or BatchRule()
    if isinstance(bundle.graph, ConformerGraphs):
        return _conformer(bundle, rule, kind)
    reasons: dict[str, str] = {}
    for name, reason, make in _choices(bundle, rule, kind == "auto"):
        if kind not in ("auto", name):
            continue
        problem = reason()
        if not problem:
            return _told(bundle, make(), reasons)
        reasons[name] = problem
    raise InvalidBundle([f"the engine {name!r} is asked for, but {reason}" for name, reason in reasons.items()])


_Choice = tuple[str, Callable[[], str], Callable[[], Loaded]]


def _choices(bundle: Bundle, rule: BatchRule, auto: bool) -> tuple[_Choice, ...]:
    """Name, why not, and how to load; the fastest first. Nothing is imported before it is asked."""
    return (
        ("torch", lambda: _not_torch(bundle, need_cuda=auto), lambda: _torch(bundle, rule)),
        ("openvino", lambda: _not_openvino(bundle, need_bf16=auto), lambda: _openvino(bundle, rule)),
        ("onnx", lambda: "", lambda: Loaded(OnnxEngine(bundle, rule), None, "ONNX Runtime")),
    )


def _told(bundle: Bundle, loaded: Loaded, reasons: dict[str, str]) -> Loaded:
    because = "".join(f"; not {name}: {reason}" for name, reason in reasons.items())
    logger.info("%s version %s is run by %s%s", bundle.name, bundle.version, loaded.name, because)
    return loaded


def _not_torch(bundle: Bundle, *, need_cuda: bool) -> str:
    if not getattr(bundle.graph, "weights", ""):
        return "the bundle holds no weights for it: convert the model with --weights"
    problem = _not_importable("torch")
    if problem or not need_cuda:
        return problem
    from predictor.engine.torch import has_cuda

    return "" if has_cuda() else "there is no CUDA device"


def _torch(bundle: Bundle, rule: BatchRule) -> Loaded:
    from predictor.engine.torch import TorchEngine, has_cuda

    engine = TorchEngine(bundle, for_gpu(rule) if has_cuda() else rule)
    return Loaded(engine, None, f"PyTorch on {engine.device}, {engine.precision}")


def _not_openvino(bundle: Bundle, *, need_bf16: bool) -> str:
    if not getattr(bundle.graph, "ir", ""):
        return "the bundle holds no OpenVINO IR: convert the model with --openvino"
    problem = _not_importable("openvino")
    if problem or not need_bf16:
        return problem
    from predictor.engine.openvino import has_bf16

    return "" if has_bf16() else "this processor has no bf16, without which it is no faster"


def _openvino(bundle: Bundle, rule: BatchRule) -> Loaded:
    from predictor.engine.openvino import OpenVinoEngine

    engine = OpenVinoEngine(bundle, rule)
    return Loaded(engine, None, f"OpenVINO, {engine.precision}")


def _not_importable(library: str) -> str:
    """The library that an engine of its name stands on."""
    if importlib.util.find_spec(library) is None:
        return f"it is not installed: pip install 'vani[{library}]'"
    try:
        importlib.import_module(f"predictor.engine.{library}")
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing or of another version
        return f"it cannot be imported ({type(error).__name__}): install 'vani[{library}]' anew"
    return ""


def for_gpu(rule: BatchRule) -> BatchRule:
    """The rule for a GPU with as many streams, unless this one batches already."""
    return rule if rule.max_rows > 1 else replace(GPU_RULE, streams=rule.streams)


def _conformer(bundle: Bundle, rule: BatchRule, kind: EngineKind) -> Loaded:
    if kind not in ("auto", "onnx"):
        raise InvalidBundle([f"the engine {kind!r} is asked for, but an {bundle.family} is run by 'onnx' alone"])
    from predictor.engine import conformer

    missing = _not_cuda()
    engine, transducer = conformer.load(bundle, rule if missing else for_gpu(rule), "cpu" if missing else "cuda")
    name = "ONNX Runtime" if missing else "ONNX Runtime on CUDA"
    return _told(bundle, Loaded(engine, transducer, name), {"CUDA": missing} if missing else {})


def _not_cuda() -> str:
    """Why ONNX Runtime cannot use a GPU; its providers say what it was built with, not what is there."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has none"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return "there is no driver"
    return "" if found and count.value else "there is no device"
