"""pipelines.conformer: a copy of the published repository becomes a bundle, or every difference is named."""

import json
import logging
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data
from reference_conformer import Reference

from pipelines import conformer
from pipelines.conformer import Options
from pipelines.errors import Permanent
from pipelines.replicas import conformer as replicas
from predictor import bundle
from predictor.engine.conformer import load
from predictor.features import extract, pad

COMMIT = "e9b71b369c048e2c6b634d4c131061c34e441179"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hub") / "model"
    replicas.write(directory)
    return directory


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    return conformer.convert(published, tmp_path_factory.mktemp("made") / "bundle", Options())


@pytest.fixture
def copy(published, tmp_path):
    """A copy to spoil: its files are links to the replica's, to be replaced and not written to."""
    return shutil.copytree(published, tmp_path / "copy", copy_function=os.link)


def _edit(path, change):
    """Replace a JSON file by what `change` makes of it, in place."""
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    path.write_text(json.dumps(content))


def test_the_bundle_has_the_same_graphs_and_says_what_they_are(published, converted):
    names = [*conformer.SHARED, *(f"joint_post_net_{code}" for code in replicas.LANGUAGES)]
    assert len(names) == 28
    for name in names:
        file = f"assets/{name}.onnx"
        assert converted.path(file).read_bytes() == (published / file).read_bytes()
    assert converted.family == "indic-conformer"
    assert (converted.front_end.kind, converted.front_end.mel_bins) == ("nemo-log-mel", 80)
    assert (converted.max_window_seconds, converted.sample_rate_hz) == (15.0, 16_000)
    graph = converted.graph
    assert (graph.frame_seconds, graph.sos_id, graph.max_symbols, graph.precision) == (0.08, 5_632, 10, "fp32")
    assert bundle.read(converted.directory) == converted


def test_the_vocabulary_has_each_languages_pieces_at_its_masks_ids(published, converted):
    reference = Reference(published)
    vocabulary = converted.vocabulary
    assert (len(vocabulary.tokens), vocabulary.blank_id, vocabulary.spelling) == (5_633, 5_632, "pieces")
    assert sorted(vocabulary.languages) == sorted(replicas.LANGUAGES)
    for language, ids in vocabulary.languages.items():
        assert ids == tuple(np.flatnonzero(reference.masks[language]).tolist())
        assert [vocabulary.tokens[i] for i in ids[:-1]] == reference.vocabulary[language][:-1]


def test_of_the_repository_nothing_else_comes_along(converted):
    files = {path.name for path in converted.directory.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".py", ".ts"))]
    assert not files & {"config.json", "vocab.json", "language_masks.json"}


def test_the_tensors_lie_in_files_named_as_published(converted):
    names = sorted(path.name for path in (converted.directory / "assets").iterdir() if path.suffix != ".onnx")
    kinds = ("layers.", "onnx__MatMul_", "onnx__Conv_", "pre_encode.", "Constant_")
    assert {kind for name in names for kind in kinds if name.startswith(kind)} == set(kinds)
    assert sum(name.startswith("Constant_") and name.endswith("_attr__value") for name in names) == 1


def test_what_the_bundle_says_is_what_the_published_graphs_say(published, converted):
    audio = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    features = extract(audio, converted.front_end)
    engine, _ = load(converted)
    (emission,) = engine.infer(pad([features]))
    reference = Reference(published)
    encoded = reference.encode(features)
    np.testing.assert_allclose(emission.encoded, encoded[0].T, atol=1e-6)
    (log_probs,) = reference.run("ctc_decoder", encoder_output=encoded)
    np.testing.assert_allclose(emission.log_probs, log_probs[0], atol=1e-5)


def test_the_symbolic_links_of_the_hubs_cache_become_real_files(published, tmp_path):
    cache = tmp_path / "models--ai4bharat--indic-conformer"
    snapshot = cache / "snapshots" / COMMIT
    for number, path in enumerate(sorted(path for path in published.rglob("*") if path.is_file())):
        blob, link = cache / "blobs" / str(number), snapshot / path.relative_to(published)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    made = conformer.convert(snapshot, tmp_path / "bundle", Options())
    assert made.source.revision == COMMIT
    shutil.rmtree(cache)
    assert not [path for path in made.directory.rglob("*") if path.is_symlink()]
    load(bundle.read(made.directory))


def test_the_commit_is_found_in_what_the_hubs_client_leaves_and_else_unknown(converted, copy, tmp_path):
    assert converted.source.revision == "unknown"
    told = copy / ".cache" / "huggingface" / "download" / "assets"
    told.mkdir(parents=True)
    for name in ("encoder.onnx", "vocab.json"):
        (told / f"{name}.metadata").write_text(f"{COMMIT}\n0123456789abcdef\n1700000000.0\n")
    assert conformer.convert(copy, tmp_path / "one", Options()).source.revision == COMMIT
    given = Options(name="x", version="2", revision="v9", repository="me/mine", licence="none")
    made = conformer.convert(copy, tmp_path / "two", given)
    assert (made.name, made.version) == ("x", "2")
    assert (made.source.repository, made.source.revision, made.source.licence) == ("me/mine", "v9", "none")


def test_matrices_of_int8_say_about_the_same_and_convolutions_stay(published, converted, tmp_path):
    small = conformer.convert(published, tmp_path / "bundle", Options(precision="int8"))
    assert small.graph.precision == "int8"
    kinds = {node.op_type for node in onnx.load(small.path(small.graph.encoder)).graph.node}
    assert {"MatMulInteger", "Conv"} <= kinds
    assert not kinds & {"ConvInteger", "QLinearConv"}
    assert len(list((small.directory / "assets").iterdir())) == 28  # one file a graph
    batch = pad([np.random.default_rng(0).standard_normal((80, 400)).astype(np.float32)])
    full, quantised = (load(each)[0].infer(batch)[0].encoded for each in (converted, small))
    error = np.sqrt(((full - quantised) ** 2).mean() / (full**2).mean())
    assert 0 < error < 0.05


def test_every_assumption_holds_for_the_replica_and_is_a_finding(published):
    findings = conformer.inspect(published)
    assert [finding.name for finding in findings if not finding.ok] == []
    assert len({finding.name for finding in findings}) == len(findings) > 40


def _share_a_token(masks):
    first, last = masks["as"].index(True), len(masks["as"]) - 1
    assert masks["bn"][first] is False
    masks["bn"][first], masks["bn"][masks["bn"].index(True, first + 1)] = True, False
    assert masks["as"][last]


def _lose_a_piece(vocabulary):
    del vocabulary["hi"][7]


SPOILT = {
    "a token of two languages": ("language_masks.json", _share_a_token, "masks: no token in two languages"),
    "a mask without the blank": (
        "language_masks.json",
        lambda masks: masks["ta"].__setitem__(slice(-2, None), [True, False]),
        "blank: 5632, the last id of each mask.*ta",
    ),
    "fewer pieces than ids": ("vocab.json", _lose_a_piece, "ids of each mask.*hi has 257 and 256"),
    "a language without a mask": ("language_masks.json", lambda masks: masks.pop("ur"), "both JSON files.*ur"),
    "a language without a graph": (
        "vocab.json",
        lambda vocabulary: vocabulary.__setitem__("xx", vocabulary["hi"]),
        "graphs: 29 files.*joint_post_net_xx",
    ),
    "no pieces but words": (
        "vocab.json",
        lambda vocabulary: vocabulary.__setitem__("hi", ["x"] * 257),
        "spelling.*hi",
    ),
    "a language that is a path": (
        "vocab.json",
        lambda vocabulary: vocabulary.__setitem__("../x", []),
        "vocab.json must",
    ),
    "numbers for pieces": ("vocab.json", lambda vocabulary: vocabulary["hi"].__setitem__(3, 4), "vocab.json must"),
    "masks of two lengths": ("language_masks.json", lambda masks: masks["hi"].append(False), "lists of a length"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_vocabulary_that_cannot_be_right_is_refused_and_nothing_is_left(copy, tmp_path, name):
    file, change, problem = SPOILT[name]
    _edit(copy / "assets" / file, change)
    with pytest.raises(Permanent, match=problem):
        conformer.convert(copy, tmp_path / "made" / "bundle", Options())
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())


def test_masks_in_another_order_are_named_and_served(copy, tmp_path, caplog):
    def exchange(masks):
        masks["as"], masks["bn"] = masks["bn"], masks["as"]

    _edit(copy / "assets" / "language_masks.json", exchange)
    findings = {finding.name: finding for finding in conformer.inspect(copy)}
    assert (findings["spans"].ok, findings["spans"].needed, findings["spans"].found) == (False, False, "not so: as, bn")
    with caplog.at_level(logging.WARNING, "vani"):
        made = conformer.convert(copy, tmp_path / "bundle", Options())
    assert "spans: 256 ids in a row, in the known order" in caplog.text
    assert made.vocabulary.languages["as"][0] == 256


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("vocab.json", b"{", "vocab.json or language_masks.json is not what it should be"),
        ("vocab.json", b"[1]", "not what it should be"),
        ("language_masks.json", b'{"hi": 3}', "not what it should be"),
        ("language_masks.json", b"\xff", "not what it should be"),
        ("rnnt_decoder.onnx", b"no graph", "rnnt_decoder.onnx: an ONNX graph"),
        ("joint_enc.onnx", None, "graphs: 28 files .*joint_enc"),
        ("vocab.json", None, "vocab.json cannot be read"),
        ("pre_encode.conv.3.weight", None, "tensors of encoder.onnx.*pre_encode.conv.3.weight"),
        ("pre_encode.conv.3.weight", b"short", "tensors of encoder.onnx.*pre_encode.conv.3.weight"),
    ],
)
def test_a_file_that_is_broken_or_missing_is_named(copy, tmp_path, file, content, problem):
    (copy / "assets" / file).unlink()
    if content is not None:
        (copy / "assets" / file).write_bytes(content)
    with pytest.raises(Permanent, match=problem):
        conformer.convert(copy, tmp_path / "bundle", Options())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/file", ".."])
def test_tensors_that_lie_elsewhere_are_refused(copy, tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    path = copy / "assets" / "encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(weight for weight in model.graph.initializer if weight.name == "pre_encode.conv.0.weight")
    tensor.raw_data = b""
    set_external_data(tensor, location, length=1_152)
    tensor.ClearField("raw_data")
    path.unlink()
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Permanent, match=r"tensors of encoder\.onnx"):
        conformer.convert(copy, tmp_path / "bundle", Options())


def test_a_graph_that_does_not_say_the_sizes_of_its_outputs_is_no_other_graph(copy):
    path = copy / "assets" / "joint_enc.onnx"
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path.unlink()
    onnx.save(model, path)
    assert all(finding.ok for finding in conformer.inspect(copy))


def test_weights_that_are_no_numbers_are_refused(copy, tmp_path):
    path = next((copy / "assets").glob("onnx__MatMul_*"))
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(np.full(size // 4, np.nan, np.float32).tobytes())
    with pytest.raises(Permanent, match="values: finite is expected, and found is not finite"):
        conformer.convert(copy, tmp_path / "bundle", Options())


def test_what_is_no_copy_of_the_model_is_refused(tmp_path):
    for act in (
        lambda: conformer.convert(tmp_path, tmp_path / "bundle", Options()),
        lambda: conformer.inspect(tmp_path),
    ):
        with pytest.raises(Permanent, match=r"language_masks\.json: it is not a copy of IndicConformer"):
            act()


def test_a_bundle_that_is_there_is_not_written_over(converted, published):
    before = sorted(converted.directory.rglob("*"))
    with pytest.raises(Permanent, match="exists already"):
        conformer.convert(published, converted.directory, Options())
    assert sorted(converted.directory.rglob("*")) == before


def test_an_encoder_of_four_frames_to_one_is_named_and_served_at_its_own_rate(tmp_path):
    replicas.write(tmp_path / "model", layers=1, width=16, heads=2, pred=8, subsampling=4)
    findings = {finding.name: finding for finding in conformer.inspect(tmp_path / "model")}
    assert (findings["frame"].ok, findings["frame"].found) == (False, "0.04 s")
    made = conformer.convert(tmp_path / "model", tmp_path / "bundle", Options())
    assert made.graph.frame_seconds == 0.04
    (emission,) = load(made)[0].infer(pad([np.zeros((80, 100), np.float32)]))
    assert len(emission.log_probs) == 25


def test_a_replica_is_the_same_each_time_and_another_with_another_seed(tmp_path):
    sizes = {"layers": 1, "width": 16, "heads": 2, "pred": 8}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        replicas.write(tmp_path / name, **sizes, seed=seed)
    one, same, other = (
        (tmp_path / name / "assets" / "ctc_decoder.onnx").read_bytes() for name in ("one", "same", "other")
    )
    assert one == same != other
