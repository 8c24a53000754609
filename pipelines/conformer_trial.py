"""An IndicConformer is run, and what comes out is looked at: what cannot be seen in its files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Permanent
from pipelines.findings import Finding
from predictor.bundle import Bundle
from predictor.engine import BatchRule, Emission
from predictor.engine.conformer import FRAME_STEPS, ConformerEngine, load
from predictor.engine.conformer_graphs import MEL_BINS, open_graph
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import FRAME_SECONDS, pad

FRAMES = (201, 120)  # of two utterances of noise
_USUAL_SECONDS = 0.08
_CLOSE = 1e-3  # what rounding makes of frames whose deviation is about 1


def frame_seconds(encoder: Path) -> float:
    """The time between two frames of an encoder, found by running it; raises Permanent."""
    noise = _noise(FRAMES[0])
    try:
        session = open_graph(encoder)
        (counts,) = session.run(["encoded_lengths"], {"audio_signal": noise[None], "length": np.array([len(noise.T)])})
    except InvalidBundle as error:
        raise Permanent("; ".join(error.problems)) from error
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise Permanent(f"{encoder.name} does not run: {error}") from error
    step = round(FRAMES[0] / max(int(counts[0]), 1))
    if step not in FRAME_STEPS:
        raise Permanent(f"{encoder.name} makes one frame of {step}, and 8 or 4 are expected")
    return step * FRAME_SECONDS


def try_out(bundle: Bundle) -> list[Finding]:
    """Load all graphs and run them over noise."""
    try:
        engine, transducer = load(bundle, BatchRule(max_rows=len(FRAMES)))
        alone = [emission for count in FRAMES for emission in engine.infer(pad([_noise(count)]))]
        joined = [
            transducer.join(transducer.start(_encoded(alone[0])), transducer.predict(None, None)[0], code)
            for code in bundle.languages
        ]
    except InvalidBundle as error:
        return [Finding("running", "graphs that fit one another", problem, ok=False) for problem in error.problems]
    except InferenceFailed as error:
        return [Finding("running", "noise is heard", str(error.__cause__), ok=False)]
    seconds, apart = bundle.graph.frame_seconds, _apart(engine, alone)
    usual = abs(seconds - _USUAL_SECONDS) < _CLOSE
    values = [*map(_encoded, alone), *(emission.log_probs for emission in alone), *joined]
    finite = all(np.isfinite(array).all() for array in values)
    normalised = "normalised" if engine.normalised else "not, so the server does it"
    return [
        Finding("frame", f"{_USUAL_SECONDS:g} s", f"{seconds:g} s", usual, needed=False),
        Finding("values", "finite", "finite" if finite else "not finite", finite),
        Finding("log-probabilities", "normalised over all tokens", normalised, engine.normalised, needed=False),
        Finding(
            "rows of a batch",
            "as each alone, which a GPU needs",
            f"up to {apart:.2g} apart",
            apart < _CLOSE,
            needed=False,
        ),
    ]


def _apart(engine: ConformerEngine, alone: list[Emission]) -> float:
    """How far a batch's frames are from those of each row alone; infinite where there are others or none."""
    try:
        together = engine.infer(pad([_noise(count) for count in FRAMES]))
    except InferenceFailed:
        return np.inf
    pairs = [(_encoded(one), _encoded(other)) for one, other in zip(alone, together, strict=True)]
    return max(float(np.abs(one - other).max()) if one.shape == other.shape else np.inf for one, other in pairs)


def _encoded(emission: Emission) -> NDArray[np.float32]:
    assert emission.encoded is not None
    return emission.encoded


def _noise(count: int) -> NDArray[np.float32]:
    """Features [mel, count]."""
    return np.random.default_rng(count).standard_normal((MEL_BINS, count), dtype=np.float32)
