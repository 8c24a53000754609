"""IndicConformer's published layout, byte for byte in form, with small random networks inside.

    config.json   model_onnx.py   assets/
        encoder.onnx and a file for each of its larger tensors   ctc_decoder.onnx   rnnt_decoder.onnx   joint_enc.onnx
        joint_pred.onnx   joint_pre_net.onnx   joint_post_net_<language>.onnx   preprocessor.ts
        vocab.json   language_masks.json

Random networks say the same thing all the time. These are adjusted until random audio makes them say something: tokens,
blanks and repeats in CTC, and in RNN-T frames with no token, one, and several.
"""

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn
from tqdm import tqdm

from pipelines.replicas.conformer_network import MEL_BINS, TOKENS, Networks, Size, build
from pipelines.replicas.conformer_weights import enliven

# In the order of their tokens, and the first letter of each one's script (of ks, mni, sat and sd: of one of them).
SPANS = (
    *("as", "bn", "brx", "doi", "kok", "gu", "hi", "kn", "ks", "mai", "ml"),
    *("mr", "mni", "ne", "or", "pa", "sa", "sat", "sd", "ta", "te", "ur"),
)
_LETTERS_FROM = (
    *(0x0995, 0x0995, 0x0915, 0x0915, 0x0915, 0x0A95, 0x0915, 0x0C95, 0x0628, 0x0915, 0x0D15),
    *(0x0915, 0x0995, 0x0915, 0x0B15, 0x0A15, 0x0915, 0x1C5A, 0x0628, 0x0B95, 0x0C15, 0x0628),
)
LANGUAGES = tuple(sorted(SPANS))
LOCAL_TOKENS = TOKENS // len(LANGUAGES)
OPSET = 17
_EXTERNAL_BYTES = 1_024  # torch's exporter stores larger tensors of a large model in files of their own
_LETTERS = 16

_CONFIG = {
    "auto_map": {"AutoConfig": "model_onnx.IndicASRConfig", "AutoModel": "model_onnx.IndicASRModel"},
    "BLANK_ID": LOCAL_TOKENS,
    "RNNT_MAX_SYMBOLS": 10,
    "PRED_RNN_LAYERS": 2,
    "SOS": LOCAL_TOKENS,  # published so, and wrong: the model's own code starts with 5632
}


def write(  # noqa: PLR0913  (a size has as many numbers)
    directory: Path,
    *,
    layers: int = 2,
    width: int = 32,
    heads: int = 4,
    pred: int = 16,
    subsampling: int = 8,
    seed: int = 0,
) -> None:
    """Write a replica into `directory`. The real size is layers=24, width=1024, heads=8, pred=640: 2.5 GB."""
    torch.manual_seed(seed)
    networks = build(Size(layers, width, heads, pred, subsampling), LANGUAGES)
    with torch.no_grad():
        enliven(networks)
    assets = directory / "assets"
    assets.mkdir(parents=True)
    _write_json(directory / "config.json", {**_CONFIG, "PRED_RNN_HIDDEN_DIM": pred})
    (directory / "model_onnx.py").write_text('raise RuntimeError("code from the model\'s repository was run")\n')
    (assets / "preprocessor.ts").write_bytes(b"a placeholder: whoever loads this fails")
    _write_json(assets / "vocab.json", {language: _pieces(language) for language in LANGUAGES})
    _write_json(assets / "language_masks.json", {language: _mask(language) for language in LANGUAGES})
    _write_graphs(networks, assets)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _pieces(language: str) -> list[str]:
    """257 pieces of the language's script: `<unk>`, what starts a word, what goes on with it, and the blank's slot."""
    letters = [chr(_LETTERS_FROM[SPANS.index(language)] + i) for i in range(_LETTERS)]
    pairs = [first + second for first in letters for second in letters]
    pieces = ["<unk>", "▁", *(f"▁{letter}" for letter in letters), *letters]
    for pair in pairs:
        pieces += [f"▁{pair}", pair]
    return [*pieces[:LOCAL_TOKENS], "<blank>"]


def _mask(language: str) -> list[bool]:
    first = SPANS.index(language) * LOCAL_TOKENS
    return [first <= token < first + LOCAL_TOKENS or token == TOKENS for token in range(TOKENS + 1)]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A network to export: an example of each input with its dynamic axes, and the dynamic axes of each output."""

    name: str
    network: nn.Module
    inputs: dict[str, tuple[Tensor, Sequence[int]]]
    outputs: dict[str, Sequence[int]]


def _graphs(networks: Networks) -> list[_Graph]:
    """All graphs but the encoder, with the names that they are published with."""
    width, pred = networks.joint_enc.in_features, networks.joint_enc.out_features
    frames, hidden = torch.zeros(2, 3, width), torch.zeros(2, 1, pred)
    targets, lengths = torch.zeros(1, 2, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    state = {"states.1": (hidden, (1,)), "onnx::Slice_3": (hidden, ())}
    joints = {"joint_pred": networks.joint_pred, "joint_pre_net": networks.joint_pre_net}
    joints |= {f"joint_post_net_{code}": net for code, net in networks.joint_post_nets.items()}
    return [
        _Graph("ctc_decoder", networks.ctc_decoder, {"encoder_output": (frames.mT, (0, 2))}, {"logprobs": (0, 1)}),
        _Graph(
            "rnnt_decoder",
            networks.prediction,
            {"targets": (targets, (0, 1)), "target_length": (lengths, (0,)), **state},
            {"outputs": (0, 2), "prednet_lengths": (0,), "states": (1,), "162": ()},
        ),
        _Graph("joint_enc", networks.joint_enc, {"input": (frames, (0, 1))}, {"output": (0, 1)}),
        *(
            _Graph(name, network, {"input": (torch.zeros(2, 1, pred), (0, 1))}, {"output": (0, 1)})
            for name, network in joints.items()
        ),
    ]


def _write_graphs(networks: Networks, assets: Path) -> None:
    encoder = _Graph(
        "encoder",
        networks.encoder,
        {"audio_signal": (torch.zeros(2, MEL_BINS, 64), (0, 2)), "length": (torch.tensor([64, 40]), (0,))},
        {"outputs": (0, 2), "encoded_lengths": (0,)},
    )
    for graph in tqdm([encoder, *_graphs(networks)], "exporting", unit="graph", disable=None):
        with tempfile.TemporaryDirectory(dir=assets) as work:  # a large graph comes with files of its own
            _export(graph, Path(work, "graph.onnx"))
            if graph is encoder:
                _store_outside(Path(work, "graph.onnx"), assets / "encoder.onnx")
            else:
                Path(work, "graph.onnx").rename(assets / f"{graph.name}.onnx")


def _export(graph: _Graph, path: Path) -> None:
    axes = {name: axes for name, (_, axes) in graph.inputs.items()} | graph.outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing, and LSTMs of another batch size: tests compare what comes out
        torch.onnx.export(
            graph.network,
            tuple(example for example, _ in graph.inputs.values()),
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: {axis: f"{name}_{axis}" for axis in of} for name, of in axes.items() if of},
            opset_version=OPSET,
            dynamo=False,
        )


def _store_outside(exported: Path, path: Path) -> None:
    """Move each larger tensor of a graph to a file of its own, named as torch's exporter names them."""
    model = onnx.load(exported)
    tensors = [(weight, weight.name) for weight in model.graph.initializer]
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Constant":
            tensors += [(a.t, f"Constant_{number}_attr__{a.name}") for a in node.attribute if a.HasField("t")]
    for tensor, name in tensors:
        if len(tensor.raw_data) > _EXTERNAL_BYTES:
            location = name.replace("::", "__").replace("/", "_")
            (path.parent / location).write_bytes(tensor.raw_data)
            set_external_data(tensor, location)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
