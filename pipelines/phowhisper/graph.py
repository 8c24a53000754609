"""Weights of a Whisper encoder with a CTC head to an ONNX graph, as ONNX Runtime runs it fastest.

    features float32 [B, mel, T], lengths int64 [B]  ->  log_probs float32 [B, T', K], tokens int32 [B, T', K]

K is 8: the likeliest tokens of each frame, the likeliest first; T' = (T + 1) // 2. `predictor.engine.whisper` is the
same network in PyTorch. Rows of a batch do not depend on each other. Two choices make it fast on a CPU:

- Attention is ONNX Runtime's fused operator, which takes a tile of the scores at a time. At 30 s that is a third faster
  than the plain one, but only where no frame is masked. So an If asks whether all rows are of one length.
- Logits are made in blocks of tokens (`head`).
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from pipelines.phowhisper import head
from pipelines.phowhisper.layout import HEAD_WIDTH, Weights
from pipelines.phowhisper.nodes import MICROSOFT, Writer, floats, whole_numbers

FEATURES, LENGTHS, LOG_PROBS, TOKENS = "features", "lengths", "log_probs", "tokens"
FRAME_SECONDS = 0.02
_EPSILON = 1e-5  # of every layer norm


def write(weights: Weights, path: Path) -> None:
    """The fp32 graph of these weights, named as in `predictor.engine.whisper`, in a file of its own."""
    graph = _Encoder(weights)
    hidden = graph.hidden()
    log_probs, tokens = head.add(graph.writer, hidden, weights)
    graph.writer.rename(log_probs, LOG_PROBS)
    graph.writer.rename(tokens, TOKENS)
    columns = head.columns(weights)
    graph.writer.save(
        path,
        [
            floats(FEATURES, ["batch", weights["encoder.conv1.weight"].shape[1], "time"]),
            whole_numbers(LENGTHS, ["batch"], TensorProto.INT64),
        ],
        [
            floats(LOG_PROBS, ["batch", "frames", columns]),
            whole_numbers(TOKENS, ["batch", "frames", columns], TensorProto.INT32),
        ],
    )


class _Encoder:
    """The nodes from features to what the classifier takes."""

    def __init__(self, weights: Weights) -> None:
        self.writer = Writer()
        self._weights = weights
        self._width = weights["encoder.conv1.weight"].shape[0]

    def hidden(self) -> str:
        """float32 [B, T', width]."""
        to = self.writer
        layers = sum(name.endswith(".fc1.weight") for name in self._weights)
        x = self._gelu(self._convolution(FEATURES, "encoder.conv1", stride=1))
        # The next convolution must see beyond a row's end the zeros that it sees where the row is alone.
        steps = to.add("Range", to.scalar(0), self._size(x, 2), to.scalar(1))
        own = to.add("Less", steps, to.add("Unsqueeze", LENGTHS, to.ints(1)))
        own = to.add("Unsqueeze", to.add("Cast", own, attributes={"to": TensorProto.FLOAT}), to.ints(1))
        x = self._gelu(self._convolution(to.add("Mul", x, own), "encoder.conv2", stride=2))
        x = to.add("Transpose", x, attributes={"perm": [0, 2, 1]})
        frames = self._size(x, 1)
        positions = to.weight("encoder.embed_positions.weight", self._weights["encoder.embed_positions.weight"])
        ends = to.add("Unsqueeze", frames, to.ints(0))
        x = to.add("Add", x, to.add("Slice", positions, to.ints(0), ends, to.ints(0)))
        lengths = to.add("Div", to.add("Add", LENGTHS, to.ints(1)), to.ints(2))
        shortest = to.add("ReduceMin", lengths, attributes={"keepdims": 0})
        whole = to.add("Equal", shortest, frames)
        lengths = to.add("Cast", lengths, attributes={"to": TensorProto.INT32})
        for number in range(layers):
            x = self._layer(x, f"encoder.layers.{number}", whole, lengths)
        x = self._linear(self._norm(x, "encoder.layer_norm"), "ctc_head.0")
        return self._norm(self._gelu(x), "ctc_head.2")

    def _layer(self, x: str, name: str, whole: str, lengths: str) -> str:
        to = self.writer
        normed = self._norm(x, f"{name}.self_attn_layer_norm")
        heard = self._attention(normed, f"{name}.self_attn", whole, lengths)
        x = to.add("Add", x, self._linear(heard, f"{name}.self_attn.out_proj"))
        wide = self._gelu(self._linear(self._norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        return to.add("Add", x, self._linear(wide, f"{name}.fc2"))

    def _attention(self, x: str, name: str, whole: str, lengths: str) -> str:
        """The biases of query, key (which has none) and value are the operator's own."""
        to = self.writer
        parts = [self._product(x, f"{name}.{part}_proj") for part in "qkv"]
        biases = [self._weights.get(f"{name}.{part}_proj.bias", np.zeros(self._width, np.float32)) for part in "qkv"]
        parts.append(to.weight(f"{name}.bias", np.concatenate(biases)))
        branches = {}
        for branch, inputs in (("then_branch", parts), ("else_branch", [*parts, lengths])):
            output = f"{name}.{branch}"
            node = helper.make_node(
                "MultiHeadAttention", inputs, [output], domain=MICROSOFT, num_heads=self._width // HEAD_WIDTH
            )
            branches[branch] = helper.make_graph([node], output, [], [floats(output, ["batch", "frames", self._width])])
        return to.add("If", whole, attributes=branches)

    def _convolution(self, x: str, name: str, stride: int) -> str:
        parts = [self.writer.weight(f"{name}.{part}", self._weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        attributes = {"kernel_shape": [3], "pads": [1, 1], "strides": [stride]}
        return self.writer.add("Conv", x, *parts, attributes=attributes)

    def _product(self, x: str, name: str) -> str:
        return self.writer.add("MatMul", x, self.writer.weight(f"{name}.weight", self._weights[f"{name}.weight"].T))

    def _linear(self, x: str, name: str) -> str:
        bias = self.writer.weight(f"{name}.bias", self._weights[f"{name}.bias"])
        return self.writer.add("Add", self._product(x, name), bias)

    def _norm(self, x: str, name: str) -> str:
        parts = [self.writer.weight(f"{name}.{part}", self._weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.writer.add("LayerNormalization", x, *parts, attributes={"axis": -1, "epsilon": _EPSILON})

    def _gelu(self, x: str) -> str:
        """x * (1 + erf(x / sqrt 2)) / 2, in the nodes that ONNX Runtime knows as one."""
        to = self.writer
        erf = to.add("Erf", to.add("Div", x, to.scalar(float(np.sqrt(2)))))
        return to.add("Mul", to.add("Mul", x, to.add("Add", erf, to.scalar(1.0))), to.scalar(0.5))

    def _size(self, x: str, dimension: int) -> str:
        shape = self.writer.add("Shape", x)
        return self.writer.add("Gather", shape, self.writer.scalar(dimension), attributes={"axis": 0})
