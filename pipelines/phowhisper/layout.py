"""The tensors of a Whisper encoder with a CTC head, whatever they are called: found, named as one, and checked.

Published names have prefixes (`model.encoder.`, `encoder.`, none) and two heads (`ctc_head.N`, `ctc_head.layers.N`).
From here on they are those of `predictor.engine.whisper`. What belongs to neither is left: a decoder, its `proj_out`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.checkpoint import Tensor
from pipelines.errors import Permanent
from pipelines.findings import Finding

HEAD_WIDTH = 64  # of one attention head, in every Whisper from tiny to large
POSITIONS = 1_500  # of 20 ms: 30 s
CLASSIFIER = "ctc_head.3"
Weights = dict[str, NDArray[np.float32]]

_START = re.compile(r"(?:.*\.)?conv1\.weight")
_HEAD = re.compile(r"(?:.*\.)?ctc_head\.(?:layers\.)?(\d+\.(?:weight|bias))")
_ENCODER = re.compile(r"encoder\.(?:conv[12]|embed_positions|layers|layer_norm)\.")  # where no prefix says it
_MEL_BINS = (80, 128)
_KERNEL = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors by the names of `predictor.engine.whisper`, their sizes, and the names of those that are left."""

    tensors: Mapping[str, Tensor]
    mel_bins: int
    width: int
    layers: int
    feed_forward: int
    positions: int
    rows: int
    left: tuple[str, ...]

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH


def read(tensors: Mapping[str, Tensor]) -> Layout:
    """Find encoder and head. Raises Permanent where one is not there or more than once."""
    starts = [name.removesuffix("conv1.weight") for name in tensors if _START.fullmatch(name)]
    if len(starts) != 1:
        raise Permanent(f"a Whisper encoder begins with one conv1.weight, and {len(starts)} are in the checkpoint")
    names: dict[str, str] = {}
    for name in tensors:
        head = _HEAD.fullmatch(name)
        own = f"ctc_head.{head[1]}" if head else f"encoder.{name.removeprefix(starts[0])}"
        if head or (name.startswith(starts[0]) and (starts[0].endswith("encoder.") or _ENCODER.match(own))):
            if own in names:
                raise Permanent(f"{names[own]} and {name} are one tensor of the network, and it has room for one")
            names[own] = name
    found = {own: tensors[name] for own, name in names.items()}
    if f"{CLASSIFIER}.weight" not in found:
        raise Permanent("the checkpoint has no CTC head: neither ctc_head.3.weight nor ctc_head.layers.3.weight")
    left = tuple(sorted(set(tensors) - set(names.values())))
    numbers = {int(name.split(".")[2]) for name in found if re.match(r"encoder\.layers\.\d+\.", name)}
    return Layout(
        tensors=found,
        mel_bins=_size(found, "encoder.conv1.weight", 1),
        width=_size(found, "encoder.conv1.weight", 0),
        layers=max(numbers, default=-1) + 1,
        feed_forward=_size(found, "encoder.layers.0.fc1.weight", 0),
        positions=_size(found, "encoder.embed_positions.weight", 0),
        rows=_size(found, f"{CLASSIFIER}.weight", 0),
        left=left,
    )


def check(layout: Layout) -> list[Finding]:
    """What is taken for granted of the encoder and the head; what the rows mean is the tokenizer's."""
    shapes = _shapes(layout)
    wrong = [
        f"{name} {layout.tensors[name].shape if name in layout.tensors else 'is not there'}"
        for name, shape in shapes.items()
        if name not in layout.tensors or layout.tensors[name].shape != shape
    ]
    wrong += [f"{name} is not known" for name in layout.tensors.keys() - shapes.keys()]
    floats = sorted({tensor.dtype for tensor in layout.tensors.values()})
    stored = all("float" in dtype for dtype in floats)
    bins = " or ".join(map(str, _MEL_BINS))
    return [
        Finding("mel bins", bins, str(layout.mel_bins), layout.mel_bins in _MEL_BINS),
        Finding("width", "a multiple of 64, the width of a head", str(layout.width), layout.width % HEAD_WIDTH == 0),
        Finding("layers", "at least one", str(layout.layers), layout.layers > 0),
        Finding("positions", f"{POSITIONS}, 30 s", str(layout.positions), layout.positions == POSITIONS),
        Finding("names and shapes", f"those of {len(shapes)} tensors", "; ".join(wrong[:4]) or "those", not wrong),
        Finding("numbers", "floating point", ", ".join(floats), stored),
    ]


def load(layout: Layout) -> Weights:
    """The values, float32. Raises Permanent with the name of a tensor that is not finite."""
    weights: Weights = {}
    for name, tensor in tqdm(sorted(layout.tensors.items()), "reading", unit="tensor", leave=False, disable=None):
        values = np.require(tensor.read(), np.float32, ["C", "W"])  # PyTorch warns of what is read-only
        if not np.isfinite(values).all():
            raise Permanent(f"{name} has values that are not finite numbers")
        weights[name] = values
    return weights


def _size(tensors: Mapping[str, Tensor], name: str, dimension: int) -> int:
    shape = tensors[name].shape if name in tensors else ()
    return shape[dimension] if dimension < len(shape) else 0


def _shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a network of these sizes."""
    width, wide, rows = layout.width, layout.feed_forward, layout.rows
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (width, layout.mel_bins, _KERNEL),
        "encoder.conv1.bias": (width,),
        "encoder.conv2.weight": (width, width, _KERNEL),
        "encoder.conv2.bias": (width,),
        "encoder.embed_positions.weight": (layout.positions, width),
    }
    norms = ["encoder.layer_norm", "ctc_head.2"]
    linear = {"ctc_head.0": (width, width), CLASSIFIER: (rows, width)}
    for layer in (f"encoder.layers.{number}." for number in range(layout.layers)):
        norms += [f"{layer}self_attn_layer_norm", f"{layer}final_layer_norm"]
        linear |= {f"{layer}self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        linear |= {f"{layer}fc1": (wide, width), f"{layer}fc2": (width, wide)}
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in linear.items() if not name.endswith("k_proj")}
