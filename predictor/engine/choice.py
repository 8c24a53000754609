"""Which engine runs a bundle, by what is installed and what the bundle holds."""

from dataclasses import dataclass
from typing import Literal

from predictor.bundle import Bundle
from predictor.engine import BatchRule, Engine, Transducer
from predictor.engine.onnx import OnnxEngine

EngineKind = Literal["auto", "onnx", "openvino", "torch"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine, its name for people, and what a transducer's search needs where the model has one."""

    engine: Engine
    transducer: Transducer | None
    name: str


def load(bundle: Bundle, rule: BatchRule | None = None, kind: EngineKind = "auto") -> Loaded:
    """Raises InvalidBundle."""
    return Loaded(OnnxEngine(bundle, rule), None, "ONNX Runtime")
