"""pipelines.phowhisper: a checkpoint in the published layout becomes a bundle that says what the reference says."""

import hashlib
import json
import subprocess
import sys
from collections import OrderedDict
from itertools import product
from string import ascii_lowercase

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from reference_whisper import BLANK, Reference
from safetensors.torch import save_file

from pipelines import phowhisper
from pipelines.checkpoint import read
from pipelines.errors import Permanent
from pipelines.phowhisper import Options, layout, nodes, tokens
from pipelines.replicas import phowhisper as replicas
from pipelines.replicas.whisper_tokenizer import WORDS
from predictor import bundle, search, transcript
from predictor.engine import Emission
from predictor.engine.onnx import OnnxEngine
from predictor.engine.whisper import WhisperCtc, from_state
from predictor.features import extract, pad
from predictor.recognizer import Recognizer
from predictor.segments import Window

INPUTS = 1_000
KEPT = " ".join(WORDS[:8])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of several libraries wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    replicas.write(directory)
    return directory


@pytest.fixture(scope="module")
def state(source):
    return {name: torch.from_numpy(tensor.read()) for name, tensor in read(source).items()}


@pytest.fixture(scope="module")
def reference(source, state):
    return Reference(source, state)


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """Bundles by options, each made once."""
    out, made = tmp_path_factory.mktemp("bundles"), {}

    def convert(**options):
        key = json.dumps(options, default=str, sort_keys=True)
        if key not in made:
            made[key] = phowhisper.convert(source, out / str(len(made)), Options(**options))
        return made[key]

    return convert


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text(f"{KEPT}\n\n{KEPT.upper()}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def long_text_file(tmp_path_factory):
    """A text of which some thousands of rows are kept: several blocks of the head and some that make no group."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    words = ["".join(letters) for letters in product(ascii_lowercase, repeat=3)]
    path.write_text("\n".join([KEPT, *words]), encoding="utf-8")
    return path


def heard(made, emission):
    """What Vani makes of an emission, step by step as the Recognizer does."""
    graph, vocabulary = made.graph, made.vocabulary
    found = search.best_path(emission, vocabulary.languages["vi"], vocabulary.blank_id, graph.repeat_gap_frames)
    words = transcript.render(search.without_prefix(found, graph.junk_prefix), vocabulary, graph.frame_seconds, 0.0)
    return " ".join(word.text for word in words)


def recordings(count, longest_seconds=0.3):
    generator = np.random.default_rng(0)
    return [replicas.noise(seconds, n) for n, seconds in enumerate(generator.uniform(0.1, longest_seconds, count))]


@pytest.fixture(scope="module")
def said(reference):
    """What the reference hears in each of a thousand recordings."""
    return [reference.transcribe(samples, padded=False) for samples in recordings(INPUTS)]


def test_a_thousand_recordings_are_heard_as_the_reference_hears_them_one_by_one(converted, said):
    recognizer = Recognizer.load(converted().directory, engine="onnx")
    for samples, expected in zip(recordings(INPUTS), said, strict=True):
        words, _ = recognizer.recognize(Window(0.0, samples), "vi")
        assert " ".join(word.text for word in words) == expected
    assert len(set(said)) > INPUTS // 2  # the test is worth something: tokens, and different ones


def test_a_thousand_recordings_are_heard_as_the_reference_hears_them_in_batches(converted, said):
    made = converted()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.path(made.graph.file), options, providers=["CPUExecutionProvider"])
    features = [extract(samples, made.front_end) for samples in recordings(INPUTS)]
    for first in range(0, INPUTS, 8):
        batch = pad(features[first : first + 8])
        inputs = {"features": batch.frames, "lengths": batch.lengths}
        for row, (log_probs, ids) in enumerate(zip(*session.run(["log_probs", "tokens"], inputs), strict=True)):
            own = (int(batch.lengths[row]) + 1) // 2
            assert heard(made, Emission(log_probs[:own], ids[:own])) == said[first + row]


def test_the_eight_likeliest_tokens_come_in_order_and_within_the_probability_of_all(converted, reference):
    made = converted()
    features = extract(replicas.noise(2.0, 7), made.front_end)
    (emission,) = OnnxEngine(made).infer(pad([features]))
    expected = np.sort(reference.log_probs(features), axis=1)[:, :-9:-1]
    np.testing.assert_allclose(emission.log_probs, expected, atol=1e-3)
    assert emission.tokens.dtype == np.int32


def test_recordings_padded_to_thirty_seconds_are_heard_as_in_training(converted, reference):
    made = converted(length="padded")
    assert made.front_end.pad_seconds == 30.0
    recognizer = Recognizer.load(made.directory, engine="onnx")
    for samples in recordings(1, 2.0):
        words, _ = recognizer.recognize(Window(0.0, samples), "vi")
        assert " ".join(word.text for word in words) == reference.transcribe(samples, padded=True)


def test_the_junk_at_the_start_is_said_by_the_network_and_not_by_us(converted, reference):
    samples = replicas.noise(1.0, 3)
    path = [token for token in reference.best(reference.features(samples, padded=False)) if token != BLANK]
    assert path[:2] == [0, 105]
    assert not reference.transcribe(samples, padded=False).startswith("!")
    assert converted().graph.junk_prefix == (0, 105)


def test_a_checkpoint_without_junk_loses_no_letter(tmp_path):
    replicas.write(tmp_path / "source", junk=False)
    made = phowhisper.convert(tmp_path / "source", tmp_path / "out", Options())
    state = {name: torch.from_numpy(tensor.read()) for name, tensor in read(tmp_path / "source").items()}
    reference, recognizer = Reference(tmp_path / "source", state), Recognizer.load(made.directory, engine="onnx")
    for samples in recordings(20):
        words, _ = recognizer.recognize(Window(0.0, samples), "vi")
        assert " ".join(word.text for word in words) == reference.transcribe(samples, padded=False)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("ctc_head.", "ctc_head.layers."),
        lambda name: f"model.{name}",
        lambda name: name.removeprefix("encoder."),
        lambda name: f"model.{name}" if name.startswith("encoder.") else name,
        lambda name: f"module.model.{name}".replace("ctc_head.", "ctc_head.layers."),
    ],
)
def test_every_published_naming_is_the_same_network(state, tmp_path, rename):
    renamed = OrderedDict((rename(name), value) for name, value in state.items())
    others = {"proj_out.weight": torch.zeros(3, 3), "model.decoder.layers.0.fc1.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": renamed | others}, tmp_path / "a.ckpt")
    found = layout.read(read(tmp_path / "a.ckpt"))
    assert all(finding.ok for finding in layout.check(found))
    assert found.left == tuple(sorted(others))
    weights = layout.load(found)
    assert weights.keys() == state.keys()
    assert all(np.array_equal(values, state[name]) for name, values in weights.items())


def test_both_heads_of_the_replica_and_a_directory_of_transformers_are_read(state, tmp_path, converted):
    replicas.write(tmp_path / "other", head="ctc_head.layers.N")
    (tmp_path / "other" / replicas.CHECKPOINT).unlink()
    half = len(state) // 2
    names = list(state)
    for number, part in enumerate((names[:half], names[half:])):
        save_file({name: state[name].contiguous() for name in part}, tmp_path / "other" / f"{number}.safetensors")
    places = {name: f"{int(place >= half)}.safetensors" for place, name in enumerate(names)}
    index = tmp_path / "other" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    made = phowhisper.convert(tmp_path / "other", tmp_path / "out", Options())
    assert made.path("model.onnx").read_bytes() == converted().path("model.onnx").read_bytes()


def test_the_same_checkpoint_and_options_give_the_same_bundle(source, converted, text_file, tmp_path):
    made = converted(rows=text_file)
    again = phowhisper.convert(source, tmp_path / "again", Options(rows=text_file))
    assert again.digest == made.digest
    assert bundle.read(tmp_path / "again") == again
    assert made.source.revision == f"sha256:{hashlib.sha256((source / replicas.CHECKPOINT).read_bytes()).hexdigest()}"
    named = phowhisper.convert(source, tmp_path / "named", Options(rows=text_file, name="other", revision="abc"))
    assert (named.name, named.source.revision) == ("other", "abc")
    assert named.digest != made.digest


def test_the_module_is_transformers_encoder_on_the_same_weights():
    modeling = pytest.importorskip("transformers.models.whisper.modeling_whisper")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 512}
    encoder = modeling.WhisperEncoder(transformers.WhisperConfig(**sizes)).eval()
    own = WhisperCtc(80, 128, 2, 512, 1500, 10).state_dict()
    module = from_state(own | {f"encoder.{name}": value for name, value in encoder.state_dict().items()})
    features = torch.randn(2, 80, 3000)
    with torch.inference_mode():
        torch.testing.assert_close(module.encoder(features), encoder(features).last_hidden_state, atol=1e-5, rtol=0)


def test_a_row_of_a_batch_does_not_depend_on_the_others_in_pytorch_either(state):
    module, features = from_state(state), torch.randn(3, 80, 90)
    lengths = torch.tensor([90, 61, 2])
    for row, length in enumerate(lengths):
        features[row, :, length:] = 0
    with torch.inference_mode():
        together = module(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = module(features[row : row + 1, :, :length])[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-4, rtol=0)


def test_rows_of_a_text_are_kept_with_bytes_junk_and_blank(converted, source, text_file):
    made = converted(rows=text_file)
    vocabulary, spelling = made.vocabulary, json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    spelt = {spelling[token] for token in vocabulary.tokens}
    assert set(vocabulary.original_ids) == spelt
    assert set(range(256)) | {BLANK} <= spelt
    assert {spelling["xin"], spelling["Ġxin"]} <= spelt  # a word with and without a space before it
    assert len(spelt) < 500
    assert vocabulary.original_ids[vocabulary.blank_id] == BLANK
    assert [vocabulary.original_ids[token] for token in made.graph.junk_prefix] == [0, 105]


def test_kept_rows_say_what_all_rows_say_and_differ_by_the_normaliser_alone(converted, text_file):
    full, kept = converted(), converted(rows=text_file)
    number = {original: own for own, original in enumerate(kept.vocabulary.original_ids)}
    compared = 0
    for samples in recordings(16, 0.8):
        features = pad([extract(samples, full.front_end)])
        (every,), (some,) = OnnxEngine(full).infer(features), OnnxEngine(kept).infer(features)
        for frame, own in enumerate(map(number.get, every.tokens[:, 0].tolist())):
            if own is not None:
                compared += 1
                assert some.tokens[frame, 0] == own
        for frame in range(len(every.tokens)):
            scores = dict(zip(some.tokens[frame].tolist(), some.log_probs[frame].tolist(), strict=True))
            known = [
                (token, score)
                for token, score in zip(every.tokens[frame].tolist(), every.log_probs[frame].tolist(), strict=True)
            ]
            gains = [scores[number[token]] - score for token, score in known if number.get(token) in scores]
            assert min(gains, default=0) > -1e-3  # fewer share the probability
            assert max(gains, default=0) - min(gains, default=0) < 1e-3
    assert compared > 200


def test_the_tokens_of_the_text_are_those_of_transformers_tokenizer(source, text_file):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.WhisperTokenizer.from_pretrained(source)
    kept = tokens.used(tokens.read(source), text_file)
    for text in (KEPT, f" {KEPT}", KEPT.lower(), KEPT.upper(), f" {KEPT.upper()}"):
        assert set(tokenizer.encode(text, add_special_tokens=False)) <= set(kept)


def test_one_tokenizer_json_is_as_good_as_vocab_and_merges(source, tmp_path):
    plain = tokens.read(source)
    ids = {token: number for number, token in enumerate(plain.tokens[:-1])}
    for merges in ([f"{left} {right}" for left, right in plain.merges], [list(pair) for pair in plain.merges]):
        model = {"type": "BPE", "vocab": ids, "merges": merges}
        whole = {"model": model, "added_tokens": [{"id": BLANK, "content": "<|endoftext|>"}]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
        assert tokens.read(tmp_path) == plain


def test_int8_hears_nearly_what_fp32_hears(converted, long_text_file):
    full, small = converted(rows=long_text_file), converted(rows=long_text_file, precision="int8")
    assert small.graph.precision == "int8"
    assert len(small.vocabulary.tokens) > 4_200
    assert small.path("model.onnx").stat().st_size < full.path("model.onnx").stat().st_size * 0.5
    same = total = 0
    for samples in recordings(16, 0.8):
        features = pad([extract(samples, full.front_end)])
        (one,), (other,) = OnnxEngine(full).infer(features), OnnxEngine(small).infer(features)
        same += int((one.tokens[:, 0] == other.tokens[:, 0]).sum())
        total += len(one.tokens)
    assert same / total > 0.85  # of random weights, whose best tokens are close to each other


def test_convolutions_stay_as_they_are_in_int8(converted, long_text_file):
    model = onnx.load(converted(rows=long_text_file, precision="int8").path("model.onnx"))
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "MatMulInteger"} <= kinds
    assert not kinds & {"MatMul", "ConvInteger"}


def test_weights_are_kept_with_the_rows_of_the_graph(converted, text_file):
    made = converted(rows=text_file, weights=True)
    kept = layout.load(layout.read(read(made.path(made.graph.weights))))
    assert kept["ctc_head.3.weight"].shape[0] == len(made.vocabulary.tokens)
    network = from_state({name: torch.from_numpy(values) for name, values in kept.items()})
    features = extract(replicas.noise(1.0, 2), made.front_end)
    (emission,) = OnnxEngine(made).infer(pad([features]))
    with torch.inference_mode():
        logits = network.classifier(network(torch.from_numpy(features)[None]))[0]
    assert emission.tokens[:, 0].tolist() == logits.argmax(dim=-1).tolist()


def test_weights_too_large_for_one_file_lie_beside_the_graph(source, converted, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "_INLINE_BYTES", 1 << 18)
    for precision in ("fp32", "int8"):
        made = phowhisper.convert(source, tmp_path / precision, Options(rows=text_file, precision=precision))
        other = converted(rows=text_file, precision=precision)
        assert made.path("model.onnx.data").is_file() == (precision == "fp32")
        features = pad([extract(replicas.noise(1.0, 2), made.front_end)])
        np.testing.assert_array_equal(*(OnnxEngine(each).infer(features)[0].log_probs for each in (made, other)))


def test_every_assumption_about_a_published_checkpoint_is_confirmed(source):
    found = phowhisper.inspect(source)
    assert all(finding.ok for finding in found)
    assert {"mel bins", "blank", "pad token", "bytes", "junk", "rows of the head"} <= {
        finding.name for finding in found
    }


def _changed(state, name, values):
    return (
        {**state, name: values} if values is not None else {key: value for key, value in state.items() if key != name}
    )


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("encoder.conv1.weight", lambda w: w[:, :64].contiguous(), "mel bins: 80 or 128 is expected, and found is 64"),
        ("encoder.embed_positions.weight", lambda w: w[:750].contiguous(), "positions: 1500, 30 s is expected"),
        ("encoder.layers.0.fc1.bias", lambda _: None, "encoder.layers.0.fc1.bias is not there"),
        (
            "encoder.layers.3.fc1.bias",
            lambda _: torch.zeros(4),
            "encoder.layers.2.self_attn_layer_norm.weight is not there",
        ),
        ("encoder.layers.0.adapter.weight", lambda _: torch.zeros(4), "encoder.layers.0.adapter.weight is not known"),
        ("ctc_head.3.weight", lambda w: w[:-1].contiguous(), "50258, the tokenizer's ids up to"),
        ("ctc_head.3.weight", lambda _: None, "no CTC head"),
        ("encoder.conv1.weight", lambda _: None, "one conv1.weight, and 0 are in"),
        ("ctc_head.0.bias", lambda b: torch.full_like(b, np.nan), "ctc_head.0.bias has values that are not finite"),
        ("ctc_head.layers.3.bias", lambda _: torch.zeros(4), "are one tensor of the network"),
    ],
)
def test_an_assumption_that_does_not_hold_is_named(request, tmp_path, name, change, problem):
    source, state = request.getfixturevalue("source"), request.getfixturevalue("state")
    save_file(_changed(state, name, change(state.get(name))), tmp_path / "model.safetensors")
    with pytest.raises(Permanent, match=problem):
        phowhisper.convert(tmp_path / "model.safetensors", tmp_path / "out", Options(tokenizer=source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_a_missing_tokenizer_says_which_files_to_put_where(source, tmp_path):
    (tmp_path / "a.ckpt").write_bytes((source / replicas.CHECKPOINT).read_bytes())
    with pytest.raises(Permanent, match=r"vocab\.json and merges\.txt.*of vinai/PhoWhisper-tiny.*--tokenizer"):
        phowhisper.convert(tmp_path / "a.ckpt", tmp_path / "out", Options())


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("vocab.json", "[]", "is not a JSON object"),
        ("vocab.json", "{", "is not JSON"),
        ("vocab.json", '{"a": "b"}', "are not Whisper's"),
        ("special_tokens_map.json", '{"pad_token": "!"}', "pad token: <|endoftext|> is expected, and found is !"),
        ("merges.txt", "#version: 0.2\na b c\n", "are not Whisper's"),
    ],
)
def test_a_tokenizer_that_is_not_whispers_is_refused(source, tmp_path, file, content, problem):
    for path in source.iterdir():
        if path.suffix in {".json", ".txt"}:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_text(content)
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(Permanent, match=problem.replace("|", r"\|")):
        phowhisper.convert(source, tmp_path / "out", Options(tokenizer=tmp_path))


def test_what_is_there_is_not_replaced_and_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(Permanent, match="exists already"):
        phowhisper.convert(source, tmp_path / "out", Options())
    (tmp_path / "out").rmdir()
    monkeypatch.setattr(bundle, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        phowhisper.convert(source, tmp_path / "out", Options())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_the_network_is_found(source, tmp_path, monkeypatch):
    wrong = layout.load

    def swapped(found):
        weights = wrong(found)
        return weights | {"encoder.layers.1.fc2.weight": weights["encoder.layers.0.fc2.weight"]}

    written = phowhisper.graph.write
    monkeypatch.setattr(phowhisper.graph, "write", lambda _, path: written(swapped(layout.read(read(source))), path))
    with pytest.raises(Permanent, match=r"log-probabilities: within 0\.001 of PyTorch's is expected"):
        phowhisper.convert(source, tmp_path / "out", Options())


MEASURED = """
import resource, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def run(frames):
    session.run(None, {"features": np.zeros((1, 80, frames), np.float32), "lengths": np.array([frames])})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(run(50), run(3000))
"""


def test_thirty_seconds_of_phowhisper_tiny_never_have_all_their_logits(source, tmp_path):
    spelling = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    network = replicas.build(list(spelling), layers=4, width=384, mel=80)
    phowhisper.graph.write(
        {name: value.numpy() for name, value in network.state_dict().items()}, tmp_path / "tiny.onnx"
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "tiny.onnx"], capture_output=True, text=True, check=True
    )
    before, after = map(float, done.stdout.split())
    assert after - before < 200  # MB; the logits would have 301, and their log-softmax as many
