"""Weights to a bundle: the ONNX graph in three precisions, and the manifest that proves it."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from demo.network import STRIDE, TOKENS_PER_FRAME, Network
from demo.sentences import LANGUAGES, load_grammar
from demo.train import BLANK, STAGES, checkpoint_path, load_network, tokens
from predictor import bundle
from predictor.bundle import Bundle, FrontEnd, Graph, Source, Vocabulary
from predictor.features import FRAME_SECONDS, SAMPLE_RATE_HZ

GRAPH = "model.onnx"
OPSET = 17
MAX_WINDOW_SECONDS = 30.0
# A character on the border of two of the network's 40 ms frames is at times said by both, with a blank between, and no
# two like characters are spoken within 40 ms. Chosen on the development split, where it takes a sixth off the errors.
REPEAT_GAP_FRAMES = 1
SOURCE = Source(repository="demo/ of Vani", revision="release {release}", licence="Apache-2.0")


def to_onnx(network: Network, path: Path) -> None:
    """The fp32 graph, batch and time dynamic: features, lengths -> log_probs."""
    example = (torch.zeros(2, network.size["mel_bins"], 101), torch.tensor([101, 60]))
    torch.onnx.export(
        network,
        example,
        str(path),
        input_names=["features", "lengths"],
        output_names=["log_probs"],
        dynamic_axes={
            "features": {0: "batch", 2: "time"},
            "lengths": {0: "batch"},
            "log_probs": {0: "batch", 1: "frames"},
        },
        opset_version=OPSET,
        dynamo=False,
    )


def store_as_fp16(path: Path) -> None:
    """Halve a graph's size: keep its weights in fp16 and cast them up where they are used.

    ONNX Runtime folds the casts while loading, so the graph computes in fp32 and as fast as before.
    """
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name, values = weight.name, numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(values, f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def quantise(source: Path, path: Path) -> None:
    """int8 weights per channel, activations quantised as they come; convolutions stay as they are.

    Seven-bit weights (`reduce_range`) because eight-bit ones overflow on processors without VNNI.
    """
    quantize_dynamic(
        source, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )


def vocabulary() -> Vocabulary:
    """The tokens, and for each language the blank, the space and the characters of its grammar."""
    spelling = tokens()
    characters = {language: {" ", BLANK, *"".join(load_grammar(language).words)} for language in LANGUAGES}
    languages = {
        language: tuple(i for i, token in enumerate(spelling) if token in used) for language, used in characters.items()
    }
    return Vocabulary(tuple(spelling), spelling.index(BLANK), languages)


def export(work: Path, release: int, precision: str, directory: Path) -> Bundle:
    """The bundle of one trained release in `directory`, which is replaced."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    full = work / f"release-{release}.onnx"
    network = load_network(checkpoint_path(work, STAGES[release]))
    to_onnx(network, full)
    if precision == "int8":
        quantise(full, directory / GRAPH)
    else:
        shutil.copyfile(full, directory / GRAPH)
        if precision == "fp16":
            store_as_fp16(directory / GRAPH)
    return bundle.write(
        directory,
        name="vani-demo",
        version=str(release),
        family="ctc",
        max_window_seconds=MAX_WINDOW_SECONDS,
        sample_rate_hz=SAMPLE_RATE_HZ,
        front_end=FrontEnd(kind="whisper-log-mel", mel_bins=network.size["mel_bins"]),
        graph=Graph(
            GRAPH,
            "features",
            "lengths",
            "log_probs",
            FRAME_SECONDS * STRIDE / TOKENS_PER_FRAME,
            precision,
            REPEAT_GAP_FRAMES,
        ),
        vocabulary=vocabulary(),
        source=Source(SOURCE.repository, SOURCE.revision.format(release=release), SOURCE.licence),
    )
