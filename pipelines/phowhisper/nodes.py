"""An ONNX graph, node by node. It is written by hand rather than traced: the same weights give the same bytes, whatever
versions are installed, and what makes it fast can be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
OPSET = 17
_IR_VERSION = 8  # of ONNX 1.12, opset 17's
_INLINE_BYTES = 1 << 30  # protobuf ends at 2 GiB; larger weights go to a file beside the graph

Attributes = Mapping[str, Any]


class Writer:
    """Adds nodes and weights, each under a name of its own, and returns the names of what comes out."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._bytes = 0

    def weight(self, name: str, values: NDArray[np.generic]) -> str:
        """A constant under a name that says what it is."""
        self._weights[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self._bytes += values.nbytes
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 [n], written once."""
        return self._constant("_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant of no dimension: int64 or float32, as the number is."""
        kind = np.int64 if isinstance(value, int) else np.float32
        return self._constant(f"scalar_{value}", np.asarray(value, kind))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        name = f"constant_{name}"
        return name if name in self._weights else self.weight(name, values)

    def add(self, kind: str, *inputs: str, domain: str = "", attributes: Attributes | None = None) -> str:
        """A node with one output."""
        return self.split(kind, *inputs, outputs=1, domain=domain, attributes=attributes)[0]

    def split(
        self, kind: str, *inputs: str, outputs: int, domain: str = "", attributes: Attributes | None = None
    ) -> list[str]:
        """A node with several outputs."""
        name = f"{kind}_{len(self._nodes)}"
        names = [f"{name}.{number}" for number in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, name, domain=domain, **(attributes or {}))
        self._nodes.append(node)
        return names

    def rename(self, last: str, name: str) -> None:
        """The graph's output `last` under the name that it is asked for by."""
        self._nodes.append(helper.make_node("Identity", [last], [name], f"{name}_output"))

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Write the graph, checked, and a file `<name>.data` beside it where the weights are too many for one."""
        graph = helper.make_graph(self._nodes, path.stem, inputs, outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="vani")
        if self._bytes > _INLINE_BYTES:
            onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
        else:
            onnx.checker.check_model(model)
            onnx.save(model, path)


def floats(name: str, shape: Sequence[str | int]) -> Any:  # noqa: ANN401  (onnx.ValueInfoProto)
    """A graph's float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def whole_numbers(name: str, shape: Sequence[str | int], kind: int) -> Any:  # noqa: ANN401  (onnx.ValueInfoProto)
    """A graph's integer input or output; `kind` is TensorProto.INT32 or INT64."""
    return helper.make_tensor_value_info(name, kind, shape)
