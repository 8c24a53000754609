"""Long recordings, for real: the test set joined, cut into windows, recognised, and compared with its clips alone."""

from pathlib import Path

import pytest

from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 300.0


@pytest.fixture(scope="module")
def seams():
    """The benchmark that measures the same at full length: one definition of a word lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import seams

        return seams


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture(scope="module")
def results(seams, recognizer):
    """By how the clips were joined and their language, with windows of at most 15 s."""
    joins = [join for join in seams.JOINS if join.name in {"clean", "no pause"}]
    made = seams.recordings(joins, SECONDS, 1, 0)
    return {(r.join.name, r.language): seams.measure(recognizer, [15.0], r)[0] for r in made}


@pytest.mark.parametrize("language", ["vi", "hi"])
@pytest.mark.parametrize("join", ["clean", "no pause"])
def test_no_word_is_lost_or_doubled_at_a_seam(results, join, language):
    result = results[join, language]
    assert (result.lost, result.doubled) == ((), ())


@pytest.mark.parametrize("language", ["vi", "hi"])
def test_where_there_are_pauses_every_seam_is_in_one_and_where_there_are_none_windows_overlap(results, language):
    paused, butted = results["clean", language], results["no pause", language]
    assert (paused.overlaps, butted.overlaps) == (0, butted.seams)
    assert paused.seams > 60
    assert butted.seams > 8


def test_the_error_rate_of_long_recordings_is_that_of_their_clips(seams, results):
    whole, alone, _ = seams.points([results["clean", language] for language in ("vi", "hi")])
    assert whole - alone <= seams.MAX_POINTS


def test_the_measure_sees_words_lost_doubled_and_changed_where_they_are(seams):
    words = [seams.Word(text, at, at + 0.3, 0.9) for at, text in enumerate(["bốn", "chim", "én", "bay", "qua", "hồ"])]
    glued = seams.Word("chimén", 1.0, 2.3, 0.9)
    found = [words[0], glued, words[3], seams.Word("quá", 4.0, 4.3, 0.9), words[5]]
    missing, added, changed = seams.unmatched(words, found)
    assert missing == set()
    assert changed == {words[1], words[2], glued, words[4], found[3]}
    assert added == set()
    missing, added, _ = seams.unmatched(words, [words[0], *words[2:5], *words[4:]])
    assert (missing, added) == ({words[1]}, {words[4]})
    assert seams.unmatched(words, []) == (set(words), set(), set())
