"""OpenVINO on the CPU: faster than ONNX Runtime where the processor computes in bf16. The only door to it.

The IR of a bundle (see `pipelines.openvino_ir`) holds two graphs side by side, in one file:

    features [1, mel, T] -> hidden [1, T', D]
    frames [n, D]        -> logits [n, V], V filled up to whole groups of GROUP

The second is run over blocks of frames: all logits of 30 s would be 301 MB for 50,258 tokens. What is made of logits is
made by NumPy, because OpenVINO takes longer for it. Every call has one thread.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Bundle, Graph
from predictor.engine import BatchRule, Emission
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch

# When it is imported OpenVINO writes to the home directory and tells a server of its maker's. Without this package,
# which it can do without, it does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

__all__ = ["GROUP", "LIKELIEST", "OpenVinoEngine", "likeliest", "openvino", "split"]

LIKELIEST = 8  # tokens of a frame
GROUP = 32  # tokens that are looked at together: see likeliest
_BLOCK_BYTES, _CACHED_BYTES = 16 * 2**20, 2**20  # of logits: from one call, and looked at at once
_INPUTS, _OUTPUTS = {"features", "frames"}, {"hidden", "logits"}

# How many activations share a scale where they are quantised as they come. Measured, core-ms for 5 s of a base encoder:
# with bf16 512 (its width) is best, 36 to 50 of OpenVINO's own 32; without it 128 to 256 are, 43 to 53 of 512.
_GROUP_SIZE_WITHOUT_BF16 = 128
# Compiled kernels are kept for every length that was ever heard: 1.4 GB more after 1,200 lengths with the default of
# 5,000, 0.2 GB with this. Making them again takes a few milliseconds.
_KEPT_KERNELS = 64
_BF16 = "BF16"
_HINTS = {"bf16": "bf16", "fp32": "f32"}

Precision = Literal["fp32", "bf16"]  # of what is computed in floating point
Logits = NDArray[np.float32]


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself."""
    return _BF16 in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """The IR of a `ctc` bundle, loaded once. `infer` may be called from several threads."""

    def __init__(self, bundle: Bundle, rule: BatchRule | None = None) -> None:
        """Load and compile; raises InvalidBundle where there is no IR, or not one of ours.

        `rule` tells the scheduler how to call: `streams` calls run side by side and others wait for one of them to end.
        Whatever else it says, rows are run one by one, each at its own length.
        """
        if not isinstance(bundle.graph, Graph) or not bundle.graph.ir:
            raise InvalidBundle(["it holds no OpenVINO IR; convert the model with one, or choose another engine"])
        self.rule = rule or BatchRule()
        self.precision: Precision = "bf16" if has_bf16() else "fp32"
        self._tokens = len(bundle.vocabulary.tokens)
        try:
            core = openvino.Core()
            encoder, head = split(core.read_model(bundle.path(bundle.graph.ir)))
            options = self._options(encoder)
            compiled = core.compile_model(encoder, "CPU", options)
            # bf16 would round logits to a sixteenth; with int8 weights it is no faster either.
            precise = core.compile_model(head, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})
        except InvalidBundle:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError, or what its bindings make of a wrong file
            raise InvalidBundle([f"{bundle.graph.ir} is not an IR that can be loaded"]) from error
        self._check(bundle, encoder, head)
        self._requests: SimpleQueue[tuple[openvino.InferRequest, openvino.InferRequest]] = SimpleQueue()
        for _ in range(self.rule.streams):
            self._requests.put((compiled.create_infer_request(), precise.create_infer_request()))

    def _options(self, encoder: openvino.Model) -> dict[str, Any]:
        width = encoder.outputs[0].partial_shape[2].get_length()
        return {
            "NUM_STREAMS": self.rule.streams,
            "INFERENCE_NUM_THREADS": self.rule.streams,
            "ENABLE_CPU_PINNING": False,  # the cores are shared with decoding and with other pods
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": width if self.precision == "bf16" else _GROUP_SIZE_WITHOUT_BF16,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
        }

    def _check(self, bundle: Bundle, encoder: openvino.Model, head: openvino.Model) -> None:
        mel_bins = encoder.inputs[0].partial_shape[1].get_length()
        columns = head.outputs[0].partial_shape[1].get_length()
        if mel_bins != bundle.front_end.mel_bins:
            raise InvalidBundle([f"the IR takes {mel_bins} mel bins, the front end gives {bundle.front_end.mel_bins}"])
        if not self._tokens <= columns < self._tokens + GROUP:
            raise InvalidBundle([f"the IR gives {columns} tokens, {self._tokens} are spelt"])

    def infer(self, batch: Batch) -> list[Emission]:
        """Run the graphs over each row at its own length, so that no row depends on another; raises InferenceFailed."""
        with self._stream() as (encoder, head):
            return [
                self._run(encoder, head, np.ascontiguousarray(row[None, :, :length]))
                for row, length in zip(batch.frames, batch.lengths, strict=True)
            ]

    @contextmanager
    def _stream(self) -> Iterator[tuple[openvino.InferRequest, openvino.InferRequest]]:
        requests = self._requests.get()
        try:
            yield requests
        except Exception as error:
            raise InferenceFailed from error
        finally:
            self._requests.put(requests)

    def _run(
        self, encoder: openvino.InferRequest, head: openvino.InferRequest, features: NDArray[np.float32]
    ) -> Emission:
        # Shared memory is overwritten by the request's next call; what leaves this method are copies.
        hidden = encoder.infer([features], share_inputs=True, share_outputs=True)[0][0]
        rows = max(1, _BLOCK_BYTES // (4 * self._tokens))
        found = []
        for first in range(0, len(hidden), rows):
            logits = head.infer([hidden[first : first + rows]], share_inputs=True, share_outputs=True)[0]
            found.append(likeliest(logits, min(LIKELIEST, self._tokens)))
        log_probs, tokens = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Emission(log_probs, tokens)


def split(model: openvino.Model) -> tuple[openvino.Model, openvino.Model]:
    """The two graphs of an IR; raises InvalidBundle where there are others."""
    inputs = {node.get_friendly_name(): node for node in model.get_parameters()}
    outputs = {node.get_friendly_name(): node for node in model.get_results()}
    if inputs.keys() != _INPUTS or outputs.keys() != _OUTPUTS:
        names = ", ".join(sorted([*inputs, *outputs]))
        raise InvalidBundle([f"the IR has {names}, and {', '.join(sorted(_INPUTS | _OUTPUTS))} are expected"])
    encoder = openvino.Model([outputs["hidden"]], [inputs["features"]], "encoder")
    head = openvino.Model([outputs["logits"]], [inputs["frames"]], "head")
    return encoder, head


def likeliest(logits: Logits, count: int) -> tuple[Logits, NDArray[np.int32]]:
    """The log-probabilities float32 [n, count] of each row's likeliest tokens int32 [n, count], the likeliest first.

    logits [n, V], V in whole groups. No token outside of the `count` groups with the highest peaks can be among them.
    A group goes across, every V / GROUP-th token, so that maxima are taken of whole vectors.
    """
    rows, columns = logits.shape
    peaks, totals = _summary(logits)
    groups = peaks.shape[1]
    taken = min(count, groups)
    best = np.argpartition(peaks, -taken, axis=1)[:, -taken:]
    near = (np.arange(GROUP)[:, None] * groups + best[:, None]).reshape(rows, -1)
    candidates = logits.reshape(-1).take(near + np.arange(rows)[:, None] * columns, mode="clip")
    places = np.argpartition(candidates, -count, axis=1)[:, -count:]
    scores = np.take_along_axis(candidates, places, axis=1)
    falling = np.argsort(-scores, axis=1)
    tokens = np.take_along_axis(near, np.take_along_axis(places, falling, axis=1), axis=1)
    return np.take_along_axis(scores, falling, axis=1) - totals, tokens.astype(np.int32)


def _summary(logits: Logits) -> tuple[Logits, Logits]:
    """The highest of each group [n, V / GROUP], and the logarithm of the sum of all exponentials [n, 1]."""
    count, columns = logits.shape
    peaks, totals = np.empty((count, columns // GROUP), np.float32), np.empty((count, 1), np.float32)
    rows = max(1, _CACHED_BYTES // (4 * columns))
    space = np.empty((rows, columns), np.float32)
    for first in range(0, count, rows):
        some, powers = logits[first : first + rows], space[: min(rows, count - first)]
        highest = some.reshape(len(some), GROUP, -1).max(axis=1, out=peaks[first : first + rows]).max(axis=1)
        np.exp(np.subtract(some, highest[:, None], out=powers), out=powers)
        totals[first : first + rows, 0] = highest + np.log(powers.sum(axis=1))
    return peaks, totals
