"""predictor.models: names and versions of what is served, over the real bundles of the demo."""

import json
import logging
import random
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from predictor.errors import InvalidBundle, UnknownModel
from predictor.models import Entry, Model, Models, _order
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

BUNDLES = EMBEDDED_BUNDLE.parent


@pytest.fixture(scope="module")
def loaded():
    """The first two releases of the demo, loaded."""
    return [Recognizer.load(BUNDLES / f"vani-demo-{number}") for number in (1, 2)]


@pytest.fixture
def models():
    """Call it for Models; what is served in the end is taken away again, from the series too."""
    made = []

    def make(load=Recognizer.load, repository=None):
        made.append(Models(load, repository))
        return made[-1]

    yield make
    for one in made:
        for name in {model.name for model in one}:
            one.remove(name)


@pytest.fixture
def repository(tmp_path):
    """A directory with the three releases of the demo, as links, and things that are no bundles."""
    for directory in BUNDLES.iterdir():
        (tmp_path / directory.name).symlink_to(directory)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("models")
    return tmp_path


def _add(models, recognizer, name, version, digest=None):
    bundle = replace(recognizer.bundle, version=version, digest=digest or f"sha256:{name} {version}")
    model = Model(name, replace(recognizer, bundle=bundle), 0.1)
    models.add(model)
    return model


def _served(**labels):
    return REGISTRY.get_sample_value("vani_asr_bundle_info", labels)


# Versions


def test_versions_are_in_the_order_in_which_people_count():
    ordered = ["0.9", "1", "1.0", "1.2", "1.9", "1.10", "1.10.1", "2", "10", "2024.5", "2024.11", "2024.11.1"]
    shuffled = random.Random(1).sample(ordered, len(ordered))
    assert sorted(shuffled, key=_order) == ordered


@pytest.mark.parametrize("separator", [".", "-", "+", "_"])
def test_versions_have_parts_however_they_are_parted(separator):
    assert _order(f"1{separator}9") < _order(f"1{separator}10")


def test_words_come_after_numbers():
    assert _order("1.9") < _order("1.a") < _order("1.b")
    assert _order("99") < _order("latest")


def test_a_candidate_comes_before_its_release():
    assert _order("2.0-rc1") < _order("2.0-rc2") < _order("2.0") < _order("2.0+build5")


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.text(), st.from_regex(r"[0-9]{1,30}([.+_-][0-9a-z]{1,5}){0,3}", fullmatch=True)), max_size=8)
)
def test_any_versions_can_be_compared(versions):
    assert sorted(versions, key=_order) == sorted(versions, key=_order)


def test_a_version_of_thousands_of_digits_is_a_word():
    assert _order("1") < _order("9" * 5_000)


# What is served


def test_nothing_is_served_at_first(models):
    served = models()
    assert (list(served), served.default, served.only, served.index()) == ([], None, None, [])
    assert served.versions("vani-demo") == []
    with pytest.raises(UnknownModel, match="model 'default' is not served here; none is"):
        served.find()


def test_a_bundle_is_served_under_its_own_name_or_another(models):
    served = models()
    served.add(served.read(BUNDLES / "vani-demo-1"))
    model = served.only
    assert (model.name, model.version) == ("vani-demo", "1")
    assert model.load_seconds > 0
    assert model.digest == model.recognizer.bundle.digest
    assert served.find() is served.find("vani-demo") is served.find("vani-demo", "1") is served.default is model
    served.add(served.read(BUNDLES / "vani-demo-1", "asr"))
    assert served.only is None
    assert served.find("asr").digest == model.digest


def test_reading_a_bundle_serves_nothing_yet(models):
    served = models()
    served.read(EMBEDDED_BUNDLE)
    assert list(served) == []


def test_a_bare_name_means_its_highest_version(models, loaded):
    served = models()
    for version in ("9", "10", "1.5"):
        _add(served, loaded[0], "vi", version)
    assert served.versions("vi") == ["1.5", "9", "10"]
    assert served.find("vi").version == "10"
    assert served.find("vi", "9").version == "9"


def test_a_request_that_names_nothing_is_answered_by_the_first_names_highest_version(models, loaded):
    served = models()
    for name, version in [("vi", "1"), ("hi", "7"), ("vi", "2")]:
        _add(served, loaded[0], name, version)
    assert (served.default.name, served.default.version) == ("vi", "2")
    served.remove("vi")
    assert served.find().name == "hi"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("ta",), "model 'ta' is not served here; vi, hi is"),
        (("vi", "3"), "model 'vi version 3' is not served here; vi version 1, vi version 2, hi version 1 is"),
        (("VI",), "model 'VI' is not served here; vi, hi is"),
        (("vi", "1.0"), "model 'vi version 1.0' is not served here"),
        (("x" * 1_000,), f"model '{'x' * 60}' is not served here"),
    ],
)
def test_a_model_that_is_not_served_is_refused_with_those_that_are(models, loaded, asked, sentence):
    served = models()
    for name, version in [("vi", "1"), ("vi", "2"), ("hi", "1")]:
        _add(served, loaded[0], name, version)
    with pytest.raises(UnknownModel) as caught:
        served.find(*asked)
    assert sentence in str(caught.value)


def test_a_model_in_the_place_of_another_is_the_one_that_answers(models, loaded):
    served = models()
    before = _add(served, loaded[0], "vi", "1", "sha256:before")
    after = _add(served, loaded[1], "vi", "1", "sha256:after")
    assert served.only is after is not before
    assert _served(model="vi", version="1", digest="sha256:before") is None
    assert _served(model="vi", version="1", digest="sha256:after") == 1
    _add(served, loaded[1], "vi", "1", "sha256:after")
    assert _served(model="vi", version="1", digest="sha256:after") == 1


def test_removing_a_name_removes_its_versions_and_their_series(models, loaded):
    served = models()
    for name, version in [("vi", "1"), ("vi", "2"), ("hi", "1")]:
        _add(served, loaded[0], name, version)
    held = served.find("vi")
    served.remove("vi")
    assert served.only.name == "hi"
    assert _served(model="vi", version="2", digest=held.digest) is None
    assert held.recognizer.transcribe((BUNDLES.parent / "testset/audio/vi-natural-000.opus").read_bytes()).text
    with pytest.raises(UnknownModel, match="hi is"):
        served.remove("vi")


# The repository


def test_the_index_is_what_is_served_and_what_could_be(models, repository):
    served = models(repository=repository)
    served.add(served.read(repository / "vani-demo-2"))
    served.add(served.read(repository / "vani-demo-1", "asr"))
    assert served.index() == [
        Entry("asr", "1", "READY"),
        Entry("vani-demo", "1", "UNAVAILABLE", "not loaded"),
        Entry("vani-demo", "2", "READY"),
        Entry("vani-demo", "3", "UNAVAILABLE", "not loaded"),
    ]


def test_a_model_is_located_loaded_and_unloaded_by_name_and_version(models, repository):
    served = models(repository=repository)
    assert served.locate("vani-demo") == repository / "vani-demo-3"
    assert served.locate("vani-demo", "2") == repository / "vani-demo-2"
    served.add(served.read(served.locate("vani-demo", "2")))
    assert (served.only.version, served.find("vani-demo").version) == ("2", "2")
    served.remove("vani-demo")
    assert {entry.state for entry in served.index()} == {"UNAVAILABLE"}


@pytest.mark.parametrize("asked", [("ta",), ("vani-demo", "4"), ("../vani-demo-1",), ("",), ("empty",)])
def test_what_the_repository_has_not_is_refused_with_what_it_has(models, repository, asked):
    with pytest.raises(UnknownModel, match="vani-demo is"):
        models(repository=repository).locate(*asked)


def test_where_there_is_no_repository_nothing_can_be_loaded(models, tmp_path):
    for repository in (None, tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").touch()
        served = models(repository=repository)
        assert served.index() == []
        with pytest.raises(UnknownModel, match="none is"):
            served.locate("vani-demo")


def test_a_bundle_that_comes_later_is_found(models, repository):
    served = models(repository=repository)
    before = served.index()
    manifest = json.loads((EMBEDDED_BUNDLE / "manifest.json").read_bytes()) | {"name": "new"}
    (repository / "new").mkdir()
    (repository / "new" / "manifest.json").write_text(json.dumps(manifest))
    assert set(served.index()) - set(before) == {Entry("new", "1", "UNAVAILABLE", "not loaded")}


@pytest.mark.parametrize(
    "manifest",
    [
        *(
            b"",
            b"{",
            b"null",
            b"[]",
            b"3",
            b'"name"',
            b'{"name": "x"}',
            b'{"version": "1"}',
            b"\xff\xfe",
            b"[" * 100_000,
        ),
        *(b'{"name": "x", "version": 1}', b'{"name": null, "version": "1"}', b'{"name": ["x"], "version": {}}'),
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_a_manifest_that_is_none_is_passed_over_with_a_warning(models, repository, manifest, caplog):
    served = models(repository=repository)
    before = served.index()
    (repository / "broken").mkdir()
    (repository / "broken" / "manifest.json").write_bytes(manifest)
    assert served.index() == before
    assert served.locate("vani-demo") == repository / "vani-demo-3"
    assert {(r.levelno, r.getMessage()) for r in caplog.records} == {
        (logging.WARNING, "broken in the model repository is no manifest")
    }


def test_a_version_that_is_absurd_does_not_hide_the_others(models, repository):
    (repository / "absurd").mkdir()
    (repository / "absurd" / "manifest.json").write_text(json.dumps({"name": "vani-demo", "version": "9" * 5_000}))
    assert len(models(repository=repository).index()) == 4


def test_a_bundle_that_is_not_what_its_manifest_says_is_not_loaded(models, repository):
    served = models(repository=repository)
    (repository / "vani-demo-3").unlink()
    shutil.copytree(BUNDLES / "vani-demo-3", repository / "vani-demo-3")
    with (repository / "vani-demo-3" / "model.onnx").open("r+b") as graph:
        graph.write(b"x")
    with pytest.raises(InvalidBundle, match=r"model\.onnx"):
        served.read(served.locate("vani-demo"))
    assert list(served) == []
