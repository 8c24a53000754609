"""pipelines.parity: the demo's bundles against each other, on clips of its test set."""

import json

import pytest

from demo import rates, testset
from pipelines import parity
from pipelines.errors import Permanent
from pipelines.parity import Parity
from predictor.recognizer import Recognizer


@pytest.fixture(scope="module")
def clips():
    return parity.read(testset.DIRECTORY)[::12]


def test_the_demos_manifest_is_a_test_set(clips):
    assert clips[0].audio.is_file()
    assert {clip.language for clip in clips} == {"vi", "hi"}


def test_a_bundle_is_as_good_as_itself_and_not_faster(clips):
    recognizer = Recognizer.load(rates.BUNDLES / "vani-demo-1")
    found = parity.compare(recognizer, recognizer, clips)
    assert found.reference_errors == found.candidate_errors
    assert found.disagreements == 0
    (only,) = parity.problems(found)
    assert "as fast" in only


def test_a_worse_bundle_is_refused_by_its_errors(clips):
    good, worse = (Recognizer.load(rates.BUNDLES / f"vani-demo-{number}") for number in (1, 3))
    found = parity.compare(good, worse, clips)
    expected = [rates.word_error_rate(_results(recognizer, clips)) for recognizer in (good, worse)]
    assert found.reference_errors / found.words == pytest.approx(expected[0])
    assert found.candidate_errors / found.words == pytest.approx(expected[1])
    assert found.disagreements > 0
    assert any("points higher" in problem for problem in parity.problems(found))


def _results(recognizer, clips):
    known = {str(testset.DIRECTORY / clip.audio): clip for clip in testset.read()}
    for clip in clips:
        text = recognizer.transcribe(clip.audio.read_bytes(), clip.language).text
        yield rates.Result(known[str(clip.audio)], text)


@pytest.mark.parametrize(
    ("rise", "seconds", "count"), [(0, 5.0, 0), (2, 5.0, 0), (4, 5.0, 1), (4, 9.5, 2), (-5, 9.5, 1), (-5, 9.0, 0)]
)
def test_both_errors_and_speed_are_asked_for(rise, seconds, count):
    found = Parity(10, 1000, 50, 50 + rise, 5, 10.0, seconds)
    assert len(list(parity.problems(found))) == count


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"audio": "a.wav"}', "line 2"),
        ('{"audio": 3, "text": "x"}', "texts"),
        ('{"audio_filepath": "a.wav", "text": "x", "lang": 3}', "texts"),
    ],
)
def test_a_line_that_is_no_clip_is_named(tmp_path, line, message):
    good = json.dumps({"audio_filepath": "a.wav", "text": "xin chào", "lang": "vi"})
    (tmp_path / "manifest.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(Permanent, match=message):
        parity.read(tmp_path)


def test_a_test_set_that_is_none_is_refused(tmp_path):
    with pytest.raises(Permanent, match="manifest"):
        parity.read(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("\n")
    with pytest.raises(Permanent, match="no clips"):
        parity.read(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"audio": "gone.wav", "text": "x"}')
    recognizer = Recognizer.load(rates.BUNDLES / "vani-demo-1")
    with pytest.raises(Permanent, match=r"gone\.wav"):
        parity.compare(recognizer, recognizer, parity.read(tmp_path))


def test_words_where_none_were_said_are_errors():
    assert parity._errors(["", "a b"], ["x y", "a c"]) == 3
    assert parity._errors([""], ["x"]) == 1
