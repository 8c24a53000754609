"""The CPU engine: ONNX Runtime. The only door to it.

A call takes one thread and any number of calls may run side by side. On a CPU that is the fastest arrangement there is:
batching and more threads to a call both lose against one utterance a core (docs/decisions/0003).
"""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from predictor.bundle import Bundle
from predictor.engine import BatchRule, Emissions
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch

_INPUT_TYPES = {"features": "tensor(float)", "lengths": "tensor(int64)"}


class OnnxEngine:
    """The graph of a `ctc` bundle, loaded once. `infer` may be called from several threads."""

    def __init__(self, bundle: Bundle, rule: BatchRule | None = None) -> None:
        """Load the graph; raises InvalidBundle where it is not the graph that the manifest describes.

        `rule` tells the scheduler how to call; whatever it says, rows are run one by one, each at its own length.
        """
        self.rule = rule or BatchRule()
        self._graph = bundle.graph
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # An arena keeps the largest window's memory for ever; these graphs run as fast without it.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.path(bundle.graph.file)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise InvalidBundle([f"{bundle.graph.file} is not a graph that can be loaded"]) from error
        self._check(bundle)

    def _check(self, bundle: Bundle) -> None:
        inputs = {node.name: node.type for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        wanted = {getattr(self._graph, role): kind for role, kind in _INPUT_TYPES.items()}
        if inputs != wanted:
            raise InvalidBundle([f"{self._graph.file} takes {inputs}, the manifest says {wanted}"])
        tokens = outputs.get(self._graph.log_probs, [None])[-1]
        if tokens != len(bundle.vocabulary.tokens):
            raise InvalidBundle(
                [f"{self._graph.file} gives {tokens} tokens, {len(bundle.vocabulary.tokens)} are spelt"]
            )

    def infer(self, batch: Batch) -> Emissions:
        """Run the graph over each row at its own length, so that no row depends on another; raises InferenceFailed."""
        rows = [self._run(row[:, :length]) for row, length in zip(batch.frames, batch.lengths, strict=True)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        if len(rows) == 1:
            return Emissions(rows[0][None], lengths)
        log_probs = np.zeros((len(rows), int(lengths.max()), rows[0].shape[1]), dtype=np.float32)
        for padded, row in zip(log_probs, rows, strict=True):
            padded[: len(row)] = row
        return Emissions(log_probs, lengths)

    def _run(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [mel, T] to log-probabilities [T', tokens]."""
        inputs = {
            self._graph.features: np.ascontiguousarray(frames[None]),
            self._graph.lengths: np.array([frames.shape[1]], dtype=np.int64),
        }
        try:
            (log_probs,) = self._session.run([self._graph.log_probs], inputs)
        except Exception as error:  # as above
            raise InferenceFailed from error
        return np.asarray(log_probs[0], dtype=np.float32)
