"""Weights of a PhoWhisper-CTC to OpenVINO's IR, node by node, as `predictor.engine.openvino` takes it.

The graph is built here instead of being traced, so that what makes it fast is visible: one product for query, key and
value; attention as one node; the classifier apart, over frames of any number. In int8 a matrix has a scale a row and is
stored as unsigned bytes around 128: VNNI multiplies unsigned by signed, and the activations are the signed side. They
are quantised as they come. Convolutions stay fp32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Permanent

try:
    from predictor.engine.openvino import GROUP, openvino
except ImportError as error:
    raise Permanent("an OpenVINO IR needs OpenVINO: pip install 'vani[openvino]'") from error

Precision = Literal["fp32", "int8"]
Weights = Mapping[str, NDArray[np.float32]]  # names as in predictor.engine.whisper

_HEAD_WIDTH = 64  # of one attention head, in every Whisper from tiny to large
_EPSILON = 1e-5  # of every layer norm
_NEVER = -1e30  # the logit of a column that fills up the last group

ops: Any = openvino.opset13
Node = Any  # openvino.Node


def write(weights: Weights, path: Path, precision: Precision) -> None:
    """The IR as `path` (.xml) and the .bin beside it; raises Permanent where `weights` are of no WhisperCtc."""
    try:
        model = build(weights, precision)
    except (KeyError, ValueError, RuntimeError) as error:
        raise Permanent(f"no OpenVINO IR can be made of these weights: {error}") from error
    openvino.save_model(model, path, compress_to_fp16=False)


def build(weights: Weights, precision: Precision) -> Any:  # noqa: ANN401  (openvino.Model)
    """Two graphs in one model: features [1, mel, T] -> hidden [1, T', D] and frames [n, D] -> logits [n, V]."""
    width, mel_bins, _ = weights["encoder.conv1.weight"].shape
    features = _named(ops.parameter([1, mel_bins, -1], np.float32), "features")
    frames = _named(ops.parameter([-1, width], np.float32), "frames")
    hidden = _Network(weights, precision).hidden(features)
    logits = _Network(weights, precision).classify(frames)
    outputs = {"hidden": hidden, "logits": logits}
    results = [_named(ops.result(node), name) for name, node in outputs.items()]
    return openvino.Model(results, [features, frames], "whisper-ctc")


class _Network:
    """Layers by the names of their weights. x is [1, T', D] between them."""

    def __init__(self, weights: Weights, precision: Precision) -> None:
        self._weights = weights
        self._quantised = precision == "int8"
        self._width = weights["encoder.conv1.weight"].shape[0]

    def hidden(self, features: Node) -> Node:
        x = self._convolution(self._convolution(features, "encoder.conv1", 1), "encoder.conv2", 2)
        x = ops.transpose(x, _constant([0, 2, 1]))
        x = ops.add(x, self._positions(x))
        for layer in range(sum(name.endswith(".fc1.weight") for name in self._weights)):
            x = self._layer(x, f"encoder.layers.{layer}")
        x = self._linear(self._norm(x, "encoder.layer_norm"), "ctc_head.0")
        return self._norm(ops.gelu(x, "erf"), "ctc_head.2")

    def classify(self, frames: Node) -> Node:
        """frames [n, D] to logits [n, V], V filled up to whole groups with tokens that never win."""
        matrix, bias = self._weights["ctc_head.3.weight"], self._weights["ctc_head.3.bias"]
        fill = -len(bias) % GROUP
        logits = self._product(frames, np.pad(matrix, ((0, fill), (0, 0))))
        return ops.add(logits, _constant(np.pad(bias, (0, fill), constant_values=_NEVER)[None]))

    def _convolution(self, x: Node, name: str, stride: int) -> Node:
        kernel, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        x = ops.convolution(x, _constant(kernel), [stride], [1], [1], [1])
        return ops.gelu(ops.add(x, _constant(bias[None, :, None])), "erf")

    def _positions(self, x: Node) -> Node:
        count = ops.gather(ops.shape_of(x), _constant([1]), _constant(0))
        table = _constant(self._weights["encoder.embed_positions.weight"][None])
        return ops.slice(table, _constant([0]), count, _constant([1]), _constant([1]))

    def _layer(self, x: Node, name: str) -> Node:
        x = ops.add(x, self._attention(self._norm(x, f"{name}.self_attn_layer_norm"), f"{name}.self_attn"))
        wide = ops.gelu(self._linear(self._norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"), "erf")
        return ops.add(x, self._linear(wide, f"{name}.fc2"))

    def _attention(self, x: Node, name: str) -> Node:
        weights, width = self._weights, self._width
        parts = [f"{name}.{part}_proj" for part in ("q", "k", "v")]
        matrix = np.concatenate([weights[f"{part}.weight"] for part in parts])
        bias = np.concatenate([weights.get(f"{part}.bias", np.zeros(width, np.float32)) for part in parts])
        shape = [0, 0, 3, width // _HEAD_WIDTH, _HEAD_WIDTH]
        joined = ops.reshape(ops.add(self._product(x, matrix), _constant(bias)), _constant(shape), special_zero=True)
        split = ops.split(ops.transpose(joined, _constant([2, 0, 3, 1, 4])), _constant(0), 3).outputs()
        query, key, value = (ops.squeeze(part, _constant([0])) for part in split)
        heard = ops.transpose(ops.scaled_dot_product_attention(query, key, value), _constant([0, 2, 1, 3]))
        return self._linear(ops.reshape(heard, _constant([0, 0, width]), special_zero=True), f"{name}.out_proj")

    def _norm(self, x: Node, name: str) -> Node:
        x = ops.mvn(x, _constant([-1]), normalize_variance=True, eps=_EPSILON, eps_mode="inside_sqrt")
        scaled = ops.multiply(x, _constant(self._weights[f"{name}.weight"]))
        return ops.add(scaled, _constant(self._weights[f"{name}.bias"]))

    def _linear(self, x: Node, name: str) -> Node:
        return ops.add(self._product(x, self._weights[f"{name}.weight"]), _constant(self._weights[f"{name}.bias"]))

    def _product(self, x: Node, matrix: NDArray[np.float32]) -> Node:
        """x [..., in] by matrix [out, in], transposed."""
        if not self._quantised:
            return ops.matmul(x, _constant(matrix), transpose_a=False, transpose_b=True)
        scales = np.abs(matrix).max(axis=1, keepdims=True) / 127
        scales[scales == 0] = 1.0
        stored = (np.rint(matrix / scales) + 128).astype(np.uint8)
        centre = _constant(np.full(scales.shape, 128, np.uint8))
        values = ops.subtract(ops.convert(_constant(stored), "f32"), ops.convert(centre, "f32"))
        return ops.matmul(x, ops.multiply(values, _constant(scales)), transpose_a=False, transpose_b=True)


def _constant(value: object) -> Node:
    array = np.asarray(value, order="C")
    return ops.constant(array.astype(np.float32) if array.dtype.kind == "f" else array)


def _named(node: Node, name: str) -> Node:
    node.set_friendly_name(name)
    return node
