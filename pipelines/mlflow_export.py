"""A bundle to an MLflow model directory (pyfunc, models from code), as `python -m pipelines export-mlflow` does.

    OUT/
      MLmodel             what MLflow reads first: the columns, and our metadata with the bundle's digest
      mlflow_model.py     pipelines/mlflow_model.py: the class that answers; nothing is pickled
      code/predictor/     the code that it stands on, as it is here
      artifacts/NAME/     the bundle, under its directory's name
      requirements.txt    and python_env.yaml, conda.yaml: the packages, exactly as they are installed here

Our code goes along instead of being required as a package: then what was tested is what runs, and a machine that
serves the model needs no index that has Vani. Nothing of this needs a tracking server.
"""

import os
import tempfile
import wave
from base64 import b64encode
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import predictor
from pipelines.errors import Permanent
from predictor.bundle import Bundle, Graph
from predictor.recognizer import Recognizer

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from pandas import DataFrame

MODEL = Path(__file__).with_name("mlflow_model.py")
PACKAGE = Path(predictor.__file__).parent
# What the Recognizer and pipelines/mlflow_model.py always import; the `predictor` extra has a whole server beside it.
# MLflow adds all of itself to a list without it; what it takes to serve is in mlflow-skinny.
REQUIREMENTS = (
    "mlflow-skinny",
    "av",
    "numpy",
    "onnxruntime",
    "pandas",
    "pydantic",
    "pydantic-settings",
    "soundfile",
    "soxr",
)


def export(directory: Path, out: Path) -> Bundle:
    """Write the bundle in `directory` as an MLflow model to `out`, which must not be there, or be empty.

    The bundle is loaded first, so that one which cannot serve is never written; `out` is complete or absent. Raises
    InvalidBundle, or Permanent where mlflow is not installed, `out` has something in it, or a path is not for MLflow.
    """
    # A command of ours sends nothing anywhere unless it was asked to: MLflow reads this when it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow.pyfunc import save_model
    except ImportError as error:
        raise Permanent("mlflow is not installed: pip install 'vani[tracking]'") from error
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Permanent(f"{out} is there already and not empty")
    for path in (directory.resolve(), out.resolve()):
        if {"#", "%"} & {*str(path)}:
            raise Permanent(f"MLflow cannot read {path}: it takes a path for a URI, in which # and % are special")
    bundle = Recognizer.load(directory).bundle
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        save_model(
            path=f"{scratch}/model",
            python_model=str(MODEL),
            artifacts={"bundle": str(directory.resolve())},
            code_paths=[str(PACKAGE)],
            pip_requirements=requirements(bundle),
            signature=signature(),
            input_example=example(),
            metadata=metadata(bundle),
            model_config={"bundle_digest": bundle.digest},
        )
        Path(scratch, "model").replace(out)
    return bundle


def requirements(bundle: Bundle) -> list[str]:
    """What the model needs, pinned to what is installed: MLflow's environments are made of exact versions.

    OpenVINO is among it where the bundle has something for it and it runs here: then it does there too.
    """
    names = [*REQUIREMENTS]
    if bundle.graph.language_models:
        names.append("kenlm")
    if isinstance(bundle.graph, Graph) and bundle.graph.ir and find_spec("openvino"):
        names.append("openvino")
    return [f"{name}=={version(name)}" for name in names]


def signature() -> "ModelSignature":
    """The columns: those of the older service's /asr, of which `audio_base64` alone must be there, and our own."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema, TensorSpec

    word = {"text": DataType.string} | dict.fromkeys(("start_seconds", "end_seconds", "confidence"), DataType.double)
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "audio_base64"),
        ColSpec(DataType.string, "lang", required=False),
        ColSpec(DataType.string, "decoding", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "transcription"),
        ColSpec(DataType.string, "lang", required=False),
        ColSpec(DataType.string, "decoding"),
        ColSpec(DataType.double, "duration_seconds"),
        ColSpec(Array(Object([Property(name, kind) for name, kind in word.items()])), "words"),
        ColSpec(DataType.string, "bundle_digest"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def example() -> "DataFrame":
    """One second of silence: what the server accepts, for `curl --data @OUT/serving_input_example.json`."""
    from pandas import DataFrame

    wav = BytesIO()
    with wave.open(wav, "wb") as file:
        file.setparams((1, 1, 8_000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 8_000)
    return DataFrame({"audio_base64": [b64encode(wav.getvalue()).decode()], "decoding": ["ctc"]})


def metadata(bundle: Bundle) -> dict[str, object]:
    """What a registry shows of the model; `bundle_digest` is the name by which all else of Vani knows it."""
    return {
        "vani_version": version("vani"),
        "bundle_digest": bundle.digest,
        "bundle_name": bundle.name,
        "bundle_version": bundle.version,
        "languages": list(bundle.languages),
        "source": f"{bundle.source.repository} at {bundle.source.revision}",
        "licence": bundle.source.licence,
    }
