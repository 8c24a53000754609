"""A PhoWhisper-CTC with random weights, small, and bundles of it with a file for each engine."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from predictor import bundle
from predictor.bundle import Bundle, FrontEnd, Graph, Source, Vocabulary
from predictor.engine import Emission
from predictor.engine.whisper import WhisperCtc

MEL_BINS = 80
FRAME_SECONDS = 0.02


def network(tokens: int = 150, width: int = 128, layers: int = 2, positions: int = 1500) -> WhisperCtc:
    """Weights from a fixed seed, spread so that frames differ in what they say and are sure of some of it."""
    torch.manual_seed(4)
    made = WhisperCtc(MEL_BINS, width, layers, 4 * width, positions, tokens).eval().requires_grad_(requires_grad=False)
    nn.init.normal_(made.encoder.embed_positions.weight, std=0.3)
    nn.init.normal_(made.classifier.weight, std=4 / width**0.5)
    nn.init.normal_(made.classifier.bias)
    return made


def features(length: int, seed: int = 0) -> np.ndarray:
    """[mel, length], within the range of log-mel frames."""
    noise = np.random.default_rng([seed, length]).normal(0, 0.5, (MEL_BINS, length))
    return noise.astype(np.float32)


@torch.inference_mode()
def log_probs(made: WhisperCtc, frames: np.ndarray) -> np.ndarray:
    """Of all tokens [T', tokens] of features [mel, T], as plainly as it can be said."""
    hidden = made(torch.from_numpy(frames)[None])[0]
    return made.classifier(hidden).log_softmax(-1).numpy()


def differences(emission: Emission, expected: np.ndarray) -> np.ndarray:
    """How far each likeliest log-probability is from that of the same token, and of the same rank: [T', K]."""
    ranked = -np.sort(-expected, axis=1)[:, : emission.log_probs.shape[1]]
    same = np.take_along_axis(expected, emission.tokens.astype(np.int64), axis=1)
    return np.maximum(abs(emission.log_probs - ranked), abs(emission.log_probs - same))


class _Plain(nn.Module):
    def __init__(self, made: WhisperCtc) -> None:
        super().__init__()
        self.made = made

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return functional.log_softmax(self.made.classifier(self.made(frames, lengths)), dim=-1)


def write_onnx(made: WhisperCtc, path: Path) -> None:
    """The plainest graph: features, lengths -> log_probs of all tokens."""
    axes = {"features": {0: "b", 2: "t"}, "lengths": {0: "b"}, "log_probs": {0: "b", 1: "f"}}
    example = (torch.zeros(2, MEL_BINS, 64), torch.tensor([64, 50]))
    names = {"input_names": ["features", "lengths"], "output_names": ["log_probs"]}
    torch.onnx.export(_Plain(made), example, str(path), **names, dynamic_axes=axes, opset_version=17, dynamo=False)


def write(directory: Path, made: WhisperCtc, *, weights: bool = False, ir: str = "", graph: bool = False) -> Bundle:
    """A bundle with `weights` for PyTorch, an `ir` of this precision, and a `graph` for ONNX Runtime, as asked for."""
    directory.mkdir(parents=True)
    count = made.classifier.out_features
    state = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    if weights:
        save_file(state, directory / "model.safetensors")
    if ir:
        from pipelines import openvino_ir

        openvino_ir.write({name: tensor.numpy() for name, tensor in state.items()}, directory / "model.xml", ir)
    if graph:
        write_onnx(made, directory / "model.onnx")
    else:
        (directory / "model.onnx").touch()
    return bundle.write(
        directory,
        name="small",
        version="1",
        family="ctc",
        max_window_seconds=30.0,
        sample_rate_hz=16_000,
        front_end=FrontEnd("whisper-log-mel", MEL_BINS),
        graph=Graph(
            "model.onnx",
            "features",
            "lengths",
            "log_probs",
            FRAME_SECONDS,
            "fp32",
            weights="model.safetensors" if weights else "",
            ir="model.xml" if ir else "",
        ),
        vocabulary=Vocabulary(tuple(map(str, range(count))), count - 1, {"vi": tuple(range(count))}),
        source=Source("tests", "1", "none"),
    )
