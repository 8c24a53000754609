"""From PyTorch to a bundle: the graph says what the network says, in every precision, however it is batched.

The network here is of full size with random weights: what is tested is the way, not what was learnt. Three things are
tested on the bundles in the repository.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from demo import export, rates, testset
from demo.network import Network, NetworkSize, output_lengths
from demo.train import STAGES, checkpoint_path, tokens
from predictor import bundle
from predictor.audio import decode
from predictor.engine.onnx import OnnxEngine
from predictor.features import FRAME_SECONDS, Batch, pad
from predictor.features.whisper import log_mel
from predictor.settings import EMBEDDED_BUNDLE

RELEASES = [f"vani-demo-{release}" for release in (1, 2, 3)]

# What the exporter of torch.onnx warns of does not touch these graphs: the masks are slices and comparisons.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding:UserWarning"),
]


@pytest.fixture(scope="module")
def features():
    """Log-mel frames of six clips of the test set."""
    clips = testset.read()[::70]
    return [log_mel(decode((testset.DIRECTORY / clip.audio).read_bytes(), 30).samples) for clip in clips]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(7)
    return Network(NetworkSize(tokens=len(tokens()))).eval()


@pytest.fixture(scope="module")
def graphs(network, tmp_path_factory):
    """The graph in each precision, by its name."""
    paths = {precision: tmp_path_factory.mktemp("graphs") / precision for precision in ("fp32", "fp16", "int8")}
    export.to_onnx(network, paths["fp32"])
    paths["fp16"].write_bytes(paths["fp32"].read_bytes())
    export.store_as_fp16(paths["fp16"])
    export.quantise(paths["fp32"], paths["int8"])
    return paths


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def infer(graph: onnxruntime.InferenceSession, batch: Batch) -> np.ndarray:
    return graph.run(["log_probs"], {"features": batch.frames, "lengths": batch.lengths})[0]


@torch.inference_mode()
def reference(network: Network, frames: np.ndarray) -> np.ndarray:
    """Log-probabilities [T', tokens] of features [mel, T], as PyTorch computes them."""
    return network(torch.from_numpy(frames)[None], torch.tensor([frames.shape[1]]))[0].numpy()


@pytest.fixture(scope="module")
def references(network, features):
    return [reference(network, frames) for frames in features]


def differences(path: Path, features: list[np.ndarray], references: list[np.ndarray]) -> np.ndarray:
    """Every absolute difference between the log-probabilities of a graph and the network's, on all clips."""
    graph = session(path)
    found = [infer(graph, pad([frames]))[0] for frames in features]
    assert [one.shape for one in found] == [one.shape for one in references]
    return np.concatenate([np.abs(one - other).ravel() for one, other in zip(found, references, strict=True)])


def test_the_fp32_graph_says_what_the_network_says(graphs, features, references):
    assert differences(graphs["fp32"], features, references).max() < 1e-4


def test_the_fp16_graph_says_nearly_what_the_network_says_in_half_the_space(graphs, features, references):
    assert 0 < differences(graphs["fp16"], features, references).max() < 2e-2
    assert graphs["fp16"].stat().st_size < 0.55 * graphs["fp32"].stat().st_size


def test_the_int8_graph_says_about_what_the_network_says_in_a_third_of_the_space(graphs, features, references):
    # No bound on the tokens chosen: random weights prefer none. Quantisation must move the typical log-probability by a
    # small part of what they spread.
    spread = np.concatenate([one.ravel() for one in references]).std()
    assert 0 < np.median(differences(graphs["int8"], features, references)) < 0.05 * spread
    assert graphs["int8"].stat().st_size < 0.4 * graphs["fp32"].stat().st_size


def test_only_the_weights_of_products_are_quantised(graphs):
    kinds = {precision: {node.op_type for node in onnx.load(path).graph.node} for precision, path in graphs.items()}
    assert {"Conv", "MatMul"} <= kinds["fp32"]
    assert "Conv" in kinds["int8"]
    assert "MatMulInteger" in kinds["int8"]
    assert "ConvInteger" not in kinds["int8"]


def test_a_batch_of_many_equals_batches_of_one(graphs, features):
    graph = session(graphs["fp32"])
    together = infer(graph, pad(features))
    lengths = [frames.shape[1] for frames in features]
    assert max(lengths) > 1.5 * min(lengths)
    for row, frames, count in zip(together, features, output_lengths(torch.tensor(lengths)).tolist(), strict=True):
        assert np.abs(row[:count] - infer(graph, pad([frames]))[0]).max() < 1e-4


def test_what_lies_behind_an_utterances_length_does_not_matter(graphs, features):
    graph = session(graphs["fp32"])
    clean = pad(features)
    noisy = Batch(clean.frames.copy(), clean.lengths)
    noise = np.random.default_rng(0)
    for row, length in zip(noisy.frames, noisy.lengths, strict=True):
        row[:, length:] = noise.uniform(-1, 1.5, row[:, length:].shape)
    assert not np.array_equal(noisy.frames, clean.frames)
    counts = output_lengths(torch.from_numpy(clean.lengths)).tolist()
    for one, other, count in zip(infer(graph, clean), infer(graph, noisy), counts, strict=True):
        assert np.abs(one[:count] - other[:count]).max() < 1e-4


@pytest.mark.parametrize("length", range(1, 10))
def test_the_shortest_inputs_work_and_give_the_frames_that_the_network_promises(network, graphs, length):
    frames = np.random.default_rng(length).uniform(-1, 1.5, (80, length)).astype(np.float32)
    (count,) = output_lengths(torch.tensor([length])).tolist()
    found = infer(session(graphs["fp32"]), pad([frames]))[0]
    assert found.shape == (count, len(tokens()))
    assert np.abs(found - reference(network, frames)).max() < 1e-4


def test_output_frames_are_those_that_the_network_promises(graphs, features):
    graph = session(graphs["fp32"])
    for frames in features:
        (count,) = output_lengths(torch.tensor([frames.shape[1]])).tolist()
        assert infer(graph, pad([frames])).shape == (1, count, len(tokens()))


def test_rows_are_log_probabilities(graphs, features):
    for path in graphs.values():
        assert np.exp(infer(session(path), pad(features[:1]))).sum(-1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_exported_release_is_a_bundle_that_the_engine_takes(network, features, tmp_path, precision):
    checkpoint = {"size": network.size, "average": network.state_dict()}
    torch.save(checkpoint, checkpoint_path(tmp_path, STAGES[2]))
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "left.over").write_text("of an export before")
    written = export.export(tmp_path, 2, precision, directory)
    assert bundle.read(directory) == written
    assert (written.name, written.version, written.graph.precision) == ("vani-demo", "2", precision)
    assert written.source.revision == "release 2"
    assert written.vocabulary.tokens == tuple(tokens())
    (emission,) = OnnxEngine(written).infer(pad(features[:1]))
    seconds = features[0].shape[1] * FRAME_SECONDS
    assert len(emission.log_probs) * written.graph.frame_seconds == pytest.approx(seconds, abs=0.04)


def test_each_language_may_use_the_characters_of_its_own_script():
    vocabulary = export.vocabulary()
    letters = {code: {vocabulary.tokens[i] for i in ids} for code, ids in vocabulary.languages.items()}
    assert letters["vi"] & letters["hi"] == {"", " "}
    assert letters["vi"] | letters["hi"] == {*vocabulary.tokens}
    assert {"ư", "ỹ"} <= letters["vi"]
    assert {"क", "्"} <= letters["hi"]


@pytest.mark.parametrize("name", RELEASES)
def test_a_bundle_in_the_repository_is_of_the_grammars_of_today(name):
    committed = bundle.read(rates.BUNDLES / name)
    assert (committed.name, committed.version) == ("vani-demo", name[-1])
    assert committed.vocabulary == export.vocabulary()
    assert committed.graph.frame_seconds == 0.02


def test_the_embedded_engine_gives_each_of_many_rows_what_it_gives_it_alone(features):
    engine = OnnxEngine(bundle.read(EMBEDDED_BUNDLE))
    together = engine.infer(pad(features))
    for emission, frames in zip(together, features, strict=True):
        (alone,) = engine.infer(pad([frames]))
        assert len(alone.log_probs) == output_lengths(torch.tensor([frames.shape[1]])).item()
        assert np.array_equal(emission.log_probs, alone.log_probs)
