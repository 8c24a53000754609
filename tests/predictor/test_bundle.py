"""predictor.bundle: a model directory is exactly what its manifest says, or it is refused by name."""

import copy
import hashlib
import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import bundle
from predictor.bundle import MANIFEST, VOCABULARY, FrontEnd, Graph, Source, Vocabulary
from predictor.errors import InvalidBundle

GRAPH = "model.onnx"
WEIGHTS = bytes(range(64))
PARTS = {
    "name": "vani-हिन्दी",
    "version": "1.2",
    "family": "ctc",
    "sample_rate_hz": 16_000,
    "max_window_seconds": 30.0,
    "front_end": FrontEnd("whisper-log-mel", 80),
    "graph": Graph(GRAPH, "features", "lengths", "log_probs", 0.02, "fp32"),
    "vocabulary": Vocabulary(("_", " ", "ư", "ग"), 0, {"vi": (0, 1, 2), "hi": (0, 1, 3)}),
    "source": Source("vani/giọng", "0" * 40, "Apache-2.0"),
}


def _make(directory, **parts):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / GRAPH).write_bytes(WEIGHTS)
    return bundle.write(directory, **(PARTS | parts))


@pytest.fixture
def directory(tmp_path):
    _make(tmp_path / "bundle")
    return tmp_path / "bundle"


def _edit(directory, change):
    """Rewrite the manifest after `change` has worked on it, in place or by returning another."""
    manifest = json.loads((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_text(json.dumps(change(manifest) or manifest))


def _edit_vocabulary(directory, content):
    """Replace the vocabulary, with a manifest that says so truly."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (directory / VOCABULARY).write_bytes(data)
    entry = {"path": VOCABULARY, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit(directory, lambda m: m["files"].__setitem__(1, entry))


def _refusal(directory):
    with pytest.raises(InvalidBundle) as caught:
        bundle.read(directory)
    assert str(directory) not in str(caught.value)
    return caught.value.problems


def test_what_was_written_is_read_back(tmp_path):
    written = _make(tmp_path)
    found = bundle.read(tmp_path)
    assert found == written
    assert {name: getattr(found, name) for name in PARTS} == PARTS
    assert found.languages == ("vi", "hi")
    assert found.path(GRAPH).read_bytes() == WEIGHTS
    assert found.digest == "sha256:" + hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()


def test_the_digest_depends_on_the_content_alone_and_not_on_the_place(tmp_path):
    assert _make(tmp_path / "here").digest == _make(tmp_path / "thờ" / "र").digest


def test_files_in_folders_and_names_in_any_script_belong_to_the_bundle(tmp_path):
    (tmp_path / "trọng số").mkdir()
    (tmp_path / "trọng số" / "भाग.bin").write_bytes(b"1")
    _make(tmp_path)
    assert [f["path"] for f in json.loads((tmp_path / MANIFEST).read_bytes())["files"]] == [
        GRAPH,
        "trọng số/भाग.bin",
        VOCABULARY,
    ]
    (tmp_path / "trọng số" / "भाग.bin").write_bytes(b"2")
    assert _refusal(tmp_path) == ("trọng số/भाग.bin does not have the manifest's SHA-256",)


def test_what_volumes_and_store_clients_leave_behind_is_ignored(directory):
    before = bundle.read(directory).digest
    for folder in ("lost+found", ".cache", "..2026_01_01"):
        (directory / folder).mkdir()
        (directory / folder / "left.bin").write_bytes(b"?")
    (directory / ".DS_Store").write_bytes(b"?")
    assert bundle.read(directory).digest == before


@pytest.mark.parametrize(
    ("spoil", "problems"),
    [
        (lambda d: (d / GRAPH).unlink(), [f"{GRAPH} is missing"]),
        (lambda d: (d / GRAPH).write_bytes(WEIGHTS[:-1]), [f"{GRAPH} has 63 bytes, the manifest says 64"]),
        (lambda d: (d / GRAPH).write_bytes(WEIGHTS[::-1]), [f"{GRAPH} does not have the manifest's SHA-256"]),
        (lambda d: (d / "notes.txt").write_bytes(b""), ["notes.txt is not in the manifest"]),
        (lambda d: (d / VOCABULARY).unlink(), [f"{VOCABULARY} is missing"]),
        (lambda d: (d / MANIFEST).unlink(), [f"{MANIFEST} cannot be read (No such file or directory)"]),
        (
            lambda d: ((d / GRAPH).rename(d / "other.onnx"), (d / VOCABULARY).write_bytes(b"")),
            [f"{GRAPH} is missing", f"{VOCABULARY} has 0 bytes", "other.onnx is not in the manifest"],
        ),
    ],
)
def test_every_file_that_differs_is_named_and_how(directory, spoil, problems):
    spoil(directory)
    found = _refusal(directory)
    assert len(found) == len(problems)
    assert all(told.startswith(expected) for told, expected in zip(found, problems, strict=True))


def test_no_byte_of_a_bundle_can_be_altered_without_refusal_or_another_digest(directory):
    digests = {bundle.read(directory).digest}
    for file in (GRAPH, VOCABULARY, MANIFEST):
        original = (directory / file).read_bytes()
        for index in range(len(original)):
            (directory / file).write_bytes(original[:index] + bytes([original[index] ^ 1]) + original[index + 1 :])
            try:
                digest = bundle.read(directory).digest
            except InvalidBundle:
                continue
            assert file == MANIFEST
            assert digest not in digests
            digests.add(digest)
        (directory / file).write_bytes(original)
    assert len(digests) > 50  # a manifest with another name is another, valid bundle


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, len(WEIGHTS) - 1), value=st.integers(0, 255))
def test_a_bundle_made_of_other_bytes_has_another_digest(index, value):
    with tempfile.TemporaryDirectory() as folder:
        first = _make(Path(folder)).digest
        (Path(folder) / GRAPH).write_bytes(WEIGHTS[:index] + bytes([value]) + WEIGHTS[index + 1 :])
        assert (bundle.write(Path(folder), **PARTS).digest == first) == (WEIGHTS[index] == value)


@pytest.mark.parametrize("path", ["../outside.bin", "a/../../outside.bin", "/etc/hostname"])
def test_a_file_outside_the_bundle_is_never_looked_at(directory, path):
    (directory.parent / "outside.bin").write_bytes(b"")
    _edit(
        directory, lambda m: m["files"].append({"path": path, "size_bytes": 0, "sha256": hashlib.sha256().hexdigest()})
    )
    assert _refusal(directory) == (f"{path} lies outside the bundle",)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\xff", b"model: yes", b"[" * 100_000, b'{"a":' * 100_000],
    ids=["empty", "cut", "no text", "YAML", "deep lists", "deep objects"],
)
def test_a_manifest_or_vocabulary_that_is_not_json_is_refused(directory, content):
    _edit_vocabulary(directory, content)
    assert _refusal(directory)
    (directory / MANIFEST).write_bytes(content)
    assert MANIFEST in _refusal(directory)[0]


@pytest.mark.parametrize("manifest", [{}, [], None, "vani-bundle/1", {"format": 1}, {"format": "vani-bundle/2"}])
def test_another_format_is_refused_by_its_name(directory, manifest):
    (directory / MANIFEST).write_text(json.dumps(manifest))
    (problem,) = _refusal(directory)
    assert "vani-bundle/1" in problem
    assert not isinstance(manifest, dict) or repr(manifest.get("format")) in problem


@pytest.mark.parametrize("key", [*(set(PARTS) - {"vocabulary"}), "graph.file", "front_end.mel_bins", "source.licence"])
def test_a_key_that_is_missing_is_named(directory, key):
    *parents, last = key.split(".")

    def remove(manifest):
        for parent in parents:
            manifest = manifest[parent]
        del manifest[last]

    _edit(directory, lambda m: (remove(m), m)[1])
    assert last in _refusal(directory)[0]


def test_a_bundle_without_a_vocabulary_is_refused_even_where_its_manifest_agrees(directory):
    (directory / VOCABULARY).unlink()
    _edit(directory, lambda m: m["files"].pop() and None)
    assert _refusal(directory) == (f"{MANIFEST} does not list {VOCABULARY}",)


@pytest.mark.parametrize("key", ["tokens", "blank_id", "languages"])
def test_a_key_that_is_missing_in_the_vocabulary_is_named(directory, key):
    content = json.loads((directory / VOCABULARY).read_bytes())
    del content[key]
    _edit_vocabulary(directory, content)
    assert key in _refusal(directory)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("name", ["vani"]),
        ("version", 1),
        ("family", {}),
        ("sample_rate_hz", "fast"),
        ("sample_rate_hz", math.inf),
        ("max_window_seconds", None),
        ("max_window_seconds", 0),
        ("max_window_seconds", math.nan),
        ("max_window_seconds", math.inf),
        ("max_window_seconds", 1e-5),  # less than one sample: no recording can be cut into such windows
        ("front_end", ["whisper-log-mel", 80]),
        ("front_end", {"kind": "whisper-log-mel", "mel_bins": "eighty"}),
        ("front_end", {"kind": "whisper-log-mel", "mel_bins": 80, "extra": 1}),
        ("graph.file", 7),
        ("graph.file", "other.onnx"),
        ("graph.features", None),
        ("graph.frame_seconds", "0.02"),
        ("graph.frame_seconds", -1),
        ("graph.frame_seconds", math.inf),
        ("source", "hub"),
        ("source.revision", None),
        ("files", None),
        ("files", {}),
        ("files", [GRAPH, VOCABULARY]),
        ("files.0.path", None),
        ("files.0.path", "."),
        ("files.0.path", "model.onnx\0"),
        ("files.0.path", "\ud800"),
        ("files.0.path", "x" * 5_000),
        ("files.0.size_bytes", "many"),
        ("files.0.size_bytes", math.inf),
        ("files.0.sha256", None),
    ],
)
def test_a_value_in_the_manifest_that_cannot_be_is_refused(directory, key, value):
    _edit(directory, lambda m: _with(m, [int(k) if k.isdecimal() else k for k in key.split(".")], value))
    assert _refusal(directory)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": None},
        {"tokens": "_ ưग"},
        {"tokens": [1, 2, 3, 4]},
        {"tokens": []},
        {"blank_id": "zero"},
        {"blank_id": None},
        {"blank_id": math.inf},
        {"blank_id": -1},
        {"blank_id": 4},
        {"languages": {}},
        {"languages": []},
        {"languages": None},
        {"languages": {"vi": []}},
        {"languages": {"vi": None}},
        {"languages": {"vi": "012"}},
        {"languages": {"vi": [0, 4]}},
        {"languages": {"vi": [-1, 0]}},
        {"languages": {"vi": [0, "a"]}},
        {"languages": {"vi": [1, 2]}},  # without the blank, nothing can be searched
    ],
    ids=str,
)
def test_a_vocabulary_that_cannot_be_is_refused(directory, wrong):
    _edit_vocabulary(directory, json.loads((directory / VOCABULARY).read_bytes()) | wrong)
    assert _refusal(directory)


@pytest.mark.parametrize("content", [[], None, 3, "text"])
def test_a_vocabulary_that_is_no_object_is_refused(directory, content):
    _edit_vocabulary(directory, content)
    assert _refusal(directory)


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def _places(value, here=()):
    """The path to every value in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, inner in items for place in _places(inner, (*here, key)))]


def _with(document, place, value):
    """A copy of the document with another value in one place."""
    changed = {"": copy.deepcopy(document)}
    parent = changed
    for key in ["", *place][:-1]:
        parent = parent[key]
    parent[["", *place][-1]] = value
    return changed[""]


def _reads_or_refuses(directory):
    with suppress(InvalidBundle):
        bundle.read(directory)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A bundle that the properties below spoil over and over; each writes both JSON files anew."""
    directory = tmp_path_factory.mktemp("sandbox")
    _make(directory)
    return directory, *(json.loads((directory / file).read_bytes()) for file in (MANIFEST, VOCABULARY))


@given(content=st.binary() | JSON.map(json.dumps).map(str.encode))
def test_any_bytes_as_a_manifest_are_read_or_refused(sandbox, content):
    directory, _, vocabulary = sandbox
    _edit_vocabulary_in(sandbox, vocabulary)
    (directory / MANIFEST).write_bytes(content)
    _reads_or_refuses(directory)


@settings(max_examples=400)
@given(data=st.data(), value=JSON)
def test_a_manifest_with_any_one_value_replaced_is_read_or_refused(sandbox, data, value):
    directory, manifest, vocabulary = sandbox
    _edit_vocabulary_in(sandbox, vocabulary)
    place = data.draw(st.sampled_from(_places(manifest)))
    (directory / MANIFEST).write_text(json.dumps(_with(manifest, place, value)))
    _reads_or_refuses(directory)


@settings(max_examples=200)
@given(data=st.data(), value=JSON)
def test_a_vocabulary_with_any_one_value_replaced_is_read_or_refused(sandbox, data, value):
    place = data.draw(st.sampled_from(_places(sandbox[2])))
    _edit_vocabulary_in(sandbox, _with(sandbox[2], place, value))
    _reads_or_refuses(sandbox[0])


def _edit_vocabulary_in(sandbox, content):
    directory, manifest, _ = sandbox
    (directory / MANIFEST).write_text(json.dumps(manifest))
    _edit_vocabulary(directory, content)
