"""The CPU engine: ONNX Runtime. The only door to it.

A call takes one thread and any number of calls may run side by side. On a CPU that is the fastest arrangement there is:
batching and more threads to a call both lose against one utterance a core (docs/decisions/0003).
"""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from predictor.bundle import Bundle, Graph
from predictor.engine import BatchRule, Emission
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch

_INPUT_TYPES = {"features": "tensor(float)", "lengths": "tensor(int64)"}


class OnnxEngine:
    """The graph of a `ctc` bundle, loaded once. `infer` may be called from several threads."""

    def __init__(self, bundle: Bundle, rule: BatchRule | None = None) -> None:
        """Load the graph; raises InvalidBundle where it is not the graph that the manifest describes.

        `rule` tells the scheduler how to call; whatever it says, rows are run one by one, each at its own length.
        """
        if not isinstance(bundle.graph, Graph):
            raise InvalidBundle([f"the family {bundle.family!r} is not one graph"])
        self.rule = rule or BatchRule()
        self._graph = bundle.graph
        self._outputs = [self._graph.log_probs, *filter(None, [self._graph.tokens])]
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
        missing = set(self._outputs) - set(outputs)
        if missing:
            raise InvalidBundle([f"{self._graph.file} does not give {min(missing)}, which the manifest names"])
        columns, count = outputs[self._graph.log_probs][-1], len(bundle.vocabulary.tokens)
        if not self._graph.tokens and columns != count:
            raise InvalidBundle([f"{self._graph.file} gives {columns} tokens, {count} are spelt"])

    def infer(self, batch: Batch) -> list[Emission]:
        """Run the graph over each row at its own length, so that no row depends on another; raises InferenceFailed."""
        return [self._run(row[:, :length]) for row, length in zip(batch.frames, batch.lengths, strict=True)]

    def _run(self, frames: NDArray[np.float32]) -> Emission:
        inputs = {
            self._graph.features: np.ascontiguousarray(frames[None]),
            self._graph.lengths: np.array([frames.shape[1]], dtype=np.int64),
        }
        try:
            log_probs, *tokens = self._session.run(self._outputs, inputs)
        except Exception as error:  # as above
            raise InferenceFailed from error
        known = np.asarray(tokens[0][0], dtype=np.int32) if tokens else None
        return Emission(np.asarray(log_probs[0], dtype=np.float32), known)
