"""pipelines.conversion and the command line: what is measured decides, and what is refused leaves nothing."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipelines import conversion
from pipelines.__main__ import main
from pipelines.conversion import LanguageModels, Wanted
from pipelines.errors import Permanent
from pipelines.replicas import phowhisper
from predictor import bundle
from predictor.errors import InvalidBundle
from predictor.recognizer import Recognizer

ARPA = "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1\t<unk>\n0\t<s>\t0\n-1\t</s>\n\n"
ARPA += "\\2-grams:\n-1\t<s> </s>\n\n\\end\\\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("phowhisper") / "source"
    phowhisper.write(directory)
    return directory


@pytest.fixture(scope="module")
def plain(source):
    return conversion.convert(source, source.parent / "plain", Wanted())


@pytest.fixture(scope="module")
def testset(plain, tmp_path_factory):
    """Noise, and what the plain bundle hears in it: its own word error rate is 0."""
    directory = tmp_path_factory.mktemp("testset")
    recognizer, rows = Recognizer.load(plain.directory), []
    for number in range(4):
        samples = phowhisper.noise(2.0, number)
        soundfile.write(directory / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        text = recognizer.transcribe((directory / f"{number}.wav").read_bytes()).text
        rows.append(json.dumps({"audio": f"{number}.wav", "text": text, "language": "vi"}))
    (directory / "manifest.jsonl").write_text("\n".join(rows))
    return directory


def _left_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_int8_that_is_as_good_and_as_fast_as_asked_is_taken(source, testset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    wanted = Wanted(precision="int8", testset=testset, max_rise_points=200.0, least_speedup=0.0)
    made = conversion.convert(source, tmp_path / "int8", wanted)
    assert bundle.read(tmp_path / "int8") == made
    assert made.graph.precision == "int8"
    assert "int8 instead of fp32: 4 clips" in caplog.text
    assert _left_in(tmp_path) == ["int8"]


@pytest.mark.parametrize(
    ("limits", "reason"), [((-0.1, 0.0), "points higher"), ((200.0, 1_000.0), "times as fast"), ((-0.1, 1_000.0), "; ")]
)
def test_int8_that_costs_words_or_gains_no_time_is_refused_with_its_figures(source, testset, tmp_path, limits, reason):
    rise, speedup = limits
    wanted = Wanted(precision="int8", testset=testset, max_rise_points=rise, least_speedup=speedup)
    with pytest.raises(Permanent, match=r"int8 is refused.*4 clips") as refusal:
        conversion.convert(source, tmp_path / "int8", wanted)
    assert reason in str(refusal.value)
    assert _left_in(tmp_path) == []


@pytest.mark.parametrize(("rise", "pad_seconds"), [(1_000.0, 0.0), (-1_000.0, 30.0)])
def test_windows_are_padded_where_their_own_length_costs_words(source, testset, tmp_path, rise, pad_seconds):
    wanted = Wanted(length="auto", testset=testset, max_rise_points=rise)
    made = conversion.convert(source, tmp_path / "auto", wanted)
    assert made.front_end.pad_seconds == pad_seconds
    assert bundle.read(tmp_path / "auto") == made


def test_a_language_model_is_part_of_the_bundle(source, tmp_path):
    pytest.importorskip("kenlm", reason="KenLM is not installed: it is built from source, by pip install 'vani[lm]'")
    (tmp_path / "vi.arpa").write_text(ARPA)
    models = LanguageModels({"vi": tmp_path / "vi.arpa"}, weight=0.3, word_bonus=0.1)
    made = conversion.convert(source, tmp_path / "bundle", Wanted(language_models=models))
    assert made.graph.language_models == {"vi": "language-models/vi.arpa"}
    recognizer = Recognizer.load(tmp_path / "bundle")
    assert recognizer.language_models["vi"].weight == 0.3
    (tmp_path / "vi.arpa").write_text("of one word alone")
    with pytest.raises(InvalidBundle, match=r"vi\.arpa"):
        conversion.convert(source, tmp_path / "other", Wanted(language_models=models))
    assert not (tmp_path / "other").exists()
    made.path("language-models/vi.arpa").write_text(ARPA + "\n")
    with pytest.raises(InvalidBundle, match="language-models"):
        Recognizer.load(tmp_path / "bundle")


REFUSED = {
    "no such source": (lambda source: source / "nowhere", Wanted(), "not there"),
    "no test set": (lambda source: source, Wanted(precision="int8"), "a test set is needed"),
    "another language's model": (
        lambda source: source,
        Wanted(language_models=LanguageModels({"hi": Path("x")})),
        "hi",
    ),
    "a directory of something else": (lambda source: source.parent, Wanted(), "should hold model.safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(source, tmp_path, name):
    of, wanted, reason = REFUSED[name]
    with pytest.raises(Permanent, match=reason):
        conversion.convert(of(source), tmp_path / "bundle", wanted)
    assert _left_in(tmp_path) == []


def test_what_is_there_is_not_overwritten(source, plain):
    with pytest.raises(Permanent, match="exists already"):
        conversion.convert(source, plain.directory, Wanted())


def test_an_interruption_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "write", interrupted)
    assert main(["convert", str(source), str(tmp_path / "bundle")]) == 130
    assert _left_in(tmp_path) == []


# The command line


def test_wrong_usage_and_refusals_have_their_exit_statuses(source, tmp_path, capsys):
    with pytest.raises(SystemExit) as usage:
        main(["convert", str(source), str(tmp_path / "bundle"), "--quantize", "int8"])
    assert usage.value.code == 2
    assert "--testset" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "bundle")]) == 3
    assert main(["convert", str(source), str(tmp_path / "b"), "--language-model", "vi"]) == 3
    assert "vi=vi.binary" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path)]) == 3
    assert main(["replica", "phowhisper", str(source)]) == 3
    assert "exists already" in capsys.readouterr().err


def test_the_doctor_tries_a_bundle_on_a_test_set(plain, testset, capsys):
    assert main(["doctor", str(plain.directory), "--testset", str(testset)]) in (0, 3)
    shown = capsys.readouterr().out
    assert "word error rate" in shown
    assert "0.00 %" in shown
    assert "times of tokens" in shown


def test_the_doctor_needs_a_bundle_for_a_test_set(source, testset, capsys):
    assert main(["doctor", str(source), "--testset", str(testset)]) == 3
    assert "no bundle" in capsys.readouterr().err


def test_converted_twice_it_is_the_same_bundle(source, plain, tmp_path):
    again = conversion.convert(source, tmp_path / "again", Wanted())
    assert again.digest == plain.digest
    assert np.array_equal(again.vocabulary.tokens, plain.vocabulary.tokens)
