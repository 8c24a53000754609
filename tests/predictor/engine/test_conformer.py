"""predictor.engine.conformer: a replica of the published layout says what plain decoders say, or is refused."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from reference_conformer import Reference

from pipelines import conformer
from pipelines.replicas import conformer as replicas
from predictor import transcript
from predictor.engine import BatchRule
from predictor.engine.conformer import ConformerEngine, ConformerTransducer, load
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch, pad
from predictor.features.nemo import log_mel
from predictor.search import best_path
from predictor.transducer import search

ROWS = 4
TOGETHER = BatchRule(max_rows=ROWS, max_padded_frames=10_000, max_padding_share=1.0)
LANGUAGES = replicas.LANGUAGES


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hub") / "model"
    replicas.write(directory)
    return directory


@pytest.fixture(scope="module")
def reference(published):
    return Reference(published)


@pytest.fixture(scope="module")
def bundle(published, tmp_path_factory):
    return conformer.convert(published, tmp_path_factory.mktemp("made") / "bundle", conformer.Options())


@pytest.fixture(scope="module")
def engine(bundle):
    return ConformerEngine(bundle)


@pytest.fixture(scope="module")
def batching(bundle):
    return ConformerEngine(bundle, TOGETHER)


@pytest.fixture(scope="module")
def transducer(bundle):
    return ConformerTransducer(bundle)


def _features(random, frames):
    """[80, frames], each row changing within about 100 ms, as speech does."""
    noise = random.standard_normal((80, frames + 9)).cumsum(axis=1)
    noise = noise[:, 9:] - noise[:, :-9]
    return ((noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)).astype(np.float32)


def _words(hypothesis, bundle):
    words = transcript.render(hypothesis, bundle.vocabulary, bundle.graph.frame_seconds, 0.0)
    return " ".join(word.text for word in words)


def _ctc(emission, language, bundle):
    return best_path(emission, bundle.vocabulary.languages[language], bundle.vocabulary.blank_id)


def _rnnt(emission, language, bundle, transducer):
    graph = bundle.graph
    return search(emission.encoded, transducer, language, bundle.vocabulary.languages[language], graph.max_symbols)


def test_1000_inputs_say_what_the_plain_decoders_say_alone_and_in_batches(
    bundle, engine, batching, transducer, reference
):
    random = np.random.default_rng(4)
    lengths = []
    for round_ in range(1_000 // ROWS):
        rows = [_features(random, int(random.integers(11, 110))) for _ in range(ROWS)]
        alone = [engine.infer(pad([row]))[0] for row in rows]
        for number, (row, one, other) in enumerate(zip(rows, alone, batching.infer(pad(rows)), strict=True)):
            language = LANGUAGES[(round_ * ROWS + number) % len(LANGUAGES)]
            first = bundle.vocabulary.languages[language][0]
            encoded = reference.encode(row)
            ctc, (rnnt, frames) = reference.ctc(encoded, language), reference.rnnt(encoded, language)
            lengths.append((len(ctc), len(rnnt)))
            for emission in (one, other):
                found = _ctc(emission, language, bundle)
                assert (found.tokens - first).tolist() == ctc
                assert _words(found, bundle) == " ".join(reference.text(ctc, language).split())
                found = _rnnt(emission, language, bundle, transducer)
                assert (found.tokens - first).tolist() == rnnt
                assert found.starts.tolist() == frames
                assert _words(found, bundle) == " ".join(reference.text(rnnt, language).split())
    assert np.all(np.median(lengths, axis=0) >= 3)  # they do say something


def test_random_audio_has_tokens_blanks_repeats_and_frames_of_several_symbols(bundle, engine, transducer, reference):
    random = np.random.default_rng(0)
    audio = random.normal(0, 0.1, 160_000) * np.repeat(random.random(100), 1_600)
    (emission,) = engine.infer(pad([log_mel(audio.astype(np.float32))]))
    paths = np.stack([emission.log_probs[:, mask].argmax(1) for mask in reference.masks.values()])
    assert 0.1 < (paths == 256).mean() < 0.9
    assert ((paths[:, 1:] == paths[:, :-1]) & (paths[:, 1:] != 256)).mean() > 0.02
    assert np.median([len(set(path)) for path in paths.tolist()]) > 5
    _, symbols = np.unique(_rnnt(emission, "as", bundle, transducer).starts, return_counts=True)
    assert {1, 2, 10} <= set(symbols.tolist())
    assert len(symbols) < len(emission.log_probs)  # and frames of none


def test_every_language_has_its_own_pieces(bundle, engine, transducer, reference):
    (emission,) = engine.infer(pad([_features(np.random.default_rng(1), 200)]))
    assert len(LANGUAGES) == 22
    for language in LANGUAGES:
        spelt = set("".join(reference.vocabulary[language]))
        for found in (_ctc(emission, language, bundle), _rnnt(emission, language, bundle, transducer)):
            assert len(found.tokens)
            assert set(found.tokens.tolist()) <= set(bundle.vocabulary.languages[language][:-1])
            assert set(_words(found, bundle)) - {" "} <= spelt


def test_emissions_are_cropped_to_their_own_length_and_are_log_probabilities(engine, batching):
    random = np.random.default_rng(2)
    rows = [_features(random, frames) for frames in (200, 64, 65, 11)]
    for made in (engine.infer(pad(rows)), batching.infer(pad(rows))):
        assert [emission.log_probs.shape for emission in made] == [(count, 5_633) for count in (25, 8, 9, 2)]
        assert [emission.encoded.shape for emission in made] == [(count, 32) for count in (25, 8, 9, 2)]
        for emission in made:
            assert emission.tokens is None
            assert emission.log_probs.dtype == emission.encoded.dtype == np.float32
            np.testing.assert_allclose(np.exp(emission.log_probs).sum(1), 1, rtol=1e-4)


def test_a_row_does_not_depend_on_the_rows_beside_it_or_on_what_lies_behind_its_end(engine, batching):
    random = np.random.default_rng(3)
    row = _features(random, 97)
    (alone,) = engine.infer(pad([row]))
    frames = random.standard_normal((2, 80, 160)).astype(np.float32) * 100
    frames[0, :, :97] = row
    beside = batching.infer(Batch(frames, np.array([97, 160])))[0]
    np.testing.assert_allclose(beside.log_probs, alone.log_probs, atol=1e-4)
    np.testing.assert_allclose(beside.encoded, alone.encoded, atol=1e-4)


def test_several_threads_get_what_one_gets(bundle, engine, transducer):
    rows = [_features(np.random.default_rng(seed), 90) for seed in range(24)]

    def said(row):
        (emission,) = engine.infer(pad([row]))
        return _rnnt(emission, "ta", bundle, transducer).tokens.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(said, rows)) == [said(row) for row in rows]


def test_a_transducer_begins_with_5632_and_not_with_what_config_json_says(bundle, transducer):
    start, _ = transducer.predict(None, None)
    other, _ = ConformerTransducer(replace(bundle, graph=replace(bundle.graph, sos_id=256))).predict(None, None)
    assert bundle.graph.sos_id == 5_632
    assert not np.allclose(start, other)
    assert np.array_equal(transducer.predict(None, None)[0], start)


def test_features_that_no_graph_takes_are_a_failed_inference(engine):
    with pytest.raises(InferenceFailed):
        engine.infer(Batch(np.zeros((1, 79, 50), np.float32), np.array([50])))


def _altered(bundle, directory, file, change):
    """A copy of the bundle in which `change` has worked on one graph, in place; its tensors stay where they are."""
    shutil.copytree(bundle.directory, directory, copy_function=os.link)
    path = directory / "assets" / f"{file}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.unlink()
    path.write_bytes(model.SerializeToString())
    return replace(bundle, directory=directory)


def _rename(kind, old, new):
    def change(model):
        (value,) = [value for value in getattr(model.graph, kind) if value.name == old]
        value.name = new
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def _take_int64(model):
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.node[0].input[0] = "narrow"
    model.graph.node.insert(0, helper.make_node("Cast", ["targets"], ["narrow"], to=onnx.TensorProto.INT32))


def _lose_a_token(model):
    """Leave out the last of the tokens, by a node that hides from shape inference how many there are."""
    (output,) = model.graph.output
    *_, tokens = output.type.tensor_type.shape.dim
    kept = numpy_helper.from_array(np.arange(tokens.dim_value) < tokens.dim_value - 1, "kept")
    model.graph.initializer.append(kept)
    name = output.name
    _rename("output", name, "all")(model)
    model.graph.node.append(helper.make_node("Compress", ["all", "kept"], [name], axis=2))
    output.name = name
    tokens.Clear()


def _swap(model):
    """Outputs exchanged: each bears the other's name."""
    _rename("output", "outputs", "x")(model)
    _rename("output", "encoded_lengths", "outputs")(model)
    _rename("output", "x", "encoded_lengths")(model)


REFUSED = {
    "an input's name": ("rnnt_decoder", _rename("input", "onnx::Slice_3", "states_2"), "rnnt_decoder.*onnx::Slice_3"),
    "an output's name": ("rnnt_decoder", _rename("output", "162", "163"), "rnnt_decoder.* 162, "),
    "an input's type": ("rnnt_decoder", _take_int64, "targets is of the type int64, and int32 is expected"),
    "an output's type": ("encoder", _swap, "encoder.*outputs is of the type int64"),
    "a language's tokens": ("joint_post_net_hi", _lose_a_token, r"'hi': \(2, 256\).*and \(2, 257\) is expected"),
    "all tokens": ("ctc_decoder", _lose_a_token, "ctc_decoder gives .*, 5632].* 5633 tokens"),
    "the state's width": (
        "rnnt_decoder",
        lambda model: setattr(model.graph.input[3].type.tensor_type.shape.dim[2], "dim_value", 17),
        r"onnx::Slice_3 has the shape \[2, 1, 17\], and \[2, 1, 16\] is expected",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_differs_is_refused_and_the_difference_is_named(bundle, tmp_path, name):
    file, change, problem = REFUSED[name]
    altered = _altered(bundle, tmp_path / "bundle", file, change)
    with pytest.raises(InvalidBundle, match=problem):
        load(altered)


def test_a_graph_that_is_none_is_refused(bundle, tmp_path):
    directory = tmp_path / "bundle"
    shutil.copytree(bundle.directory, directory, copy_function=os.link)
    (directory / "assets" / "joint_enc.onnx").unlink()
    (directory / "assets" / "joint_enc.onnx").write_bytes(b"no graph")
    with pytest.raises(InvalidBundle, match=r"joint_enc\.onnx is not a graph"):
        load(replace(bundle, directory=directory))


def test_a_frame_rate_that_is_not_the_manifests_is_refused(bundle):
    with pytest.raises(InvalidBundle, match=r"an encoder frame is 0.08 s, the manifest says 0.04 s"):
        ConformerEngine(replace(bundle, graph=replace(bundle.graph, frame_seconds=0.04)))


def test_languages_without_a_joint_network_are_refused(bundle):
    nets = {code: file for code, file in bundle.graph.joint_post_nets.items() if code != "ta"}
    with pytest.raises(InvalidBundle, match="languages"):
        ConformerTransducer(replace(bundle, graph=replace(bundle.graph, joint_post_nets=nets)))


def test_a_gpu_that_is_asked_for_and_not_there_is_named(bundle):
    with pytest.raises(InvalidBundle, match="no CUDA"):
        ConformerEngine(bundle, device="cuda")


def test_scores_that_are_not_normalised_are_normalised(bundle, engine, tmp_path):
    def unnormalised(model):
        (node,) = [node for node in model.graph.node if node.op_type == "LogSoftmax"]
        node.CopyFrom(helper.make_node("Identity", node.input, node.output))

    altered = ConformerEngine(_altered(bundle, tmp_path / "bundle", "ctc_decoder", unnormalised), TOGETHER)
    batch = pad([_features(np.random.default_rng(seed), 60 + seed) for seed in range(2)])
    assert (engine.normalised, altered.normalised) == (True, False)
    for one, other in zip(engine.infer(batch), altered.infer(batch), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


def test_joint_networks_of_one_row_are_asked_for_one_at_a_time(bundle, engine, transducer, tmp_path):
    def fixed(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    altered = ConformerTransducer(_altered(bundle, tmp_path / "bundle", "joint_pre_net", fixed))
    (emission,) = engine.infer(pad([_features(np.random.default_rng(5), 300)]))
    expected = _rnnt(emission, "gu", bundle, transducer).tokens.tolist()
    assert expected
    assert _rnnt(emission, "gu", bundle, altered).tokens.tolist() == expected
