"""What the README says of the demo bundles: error rates on the natural sentences of the test set, and sizes."""

from functools import cache

import pytest

from demo import rates, testset
from demo.rates import Result, character_error_rate, word_error_rate
from demo.sentences import LANGUAGES

RELEASES = [f"vani-demo-{release}" for release in (1, 2, 3)]
NATURAL = [clip for clip in testset.read() if clip.kind == "natural"]


@pytest.fixture(scope="module")
def transcribed():
    """A bundle's name to its results; each bundle transcribes the test set once."""
    return cache(lambda name: rates.transcribe(rates.BUNDLES / name, NATURAL))


@pytest.fixture(scope="module")
def percent(transcribed):
    """The word error rate of a bundle in a language, in percent."""
    return lambda name, language: 100 * word_error_rate(r for r in transcribed(name) if r.clip.language == language)


def results(*pairs: tuple[str, str]) -> list[Result]:
    """The first clips of the test set, as if the first text had been said and the second understood."""
    clips = (
        testset.Clip("", "", said, "vi", "natural", "", bool(number % 2), 1.0, "")
        for number, (said, _) in enumerate(pairs)
    )
    return [Result(clip, understood) for clip, (_, understood) in zip(clips, pairs, strict=True)]


def test_the_word_error_rate_divides_all_errors_by_all_words():
    # One substitution and one deletion, then one insertion: three errors in six words, whatever each clip's own rate.
    assert word_error_rate(results(("một hai ba bốn", "một hay ba"), ("năm sáu", "năm sáu bảy"))) == pytest.approx(
        3 / 6
    )


def test_the_character_error_rate_counts_characters_and_spaces():
    assert character_error_rate(results(("cá to", "ca to"))) == pytest.approx(1 / 5)


def test_the_table_has_a_row_for_each_bundle_and_tells_known_speakers_from_new_ones():
    table = rates.table({"mine": results(("một hai", "một hai"), ("ba bốn", "ba"))})
    cells = [list(column.cells) for column in table.columns]
    assert [cell for (cell,) in cells] == ["mine", "vi", "natural", "2", "4", "25.00%", "30.77%", "0.00%", "50.00%"]


def test_all_of_the_natural_sentences_are_transcribed(transcribed):
    assert [r.clip for r in transcribed("vani-demo-1")] == NATURAL
    assert len(NATURAL) == 300


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_embedded_bundle_makes_fewer_than_four_errors_in_a_hundred_words(percent, language):
    assert percent("vani-demo-1", language) < 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_release_2_is_not_worse_than_release_1(percent, language):
    assert percent("vani-demo-2", language) <= percent("vani-demo-1", language) + 0.5


def test_release_3_is_worse_in_vietnamese_as_a_real_fault_would_make_it(percent):
    assert 1.5 <= percent("vani-demo-3", "vi") - percent("vani-demo-1", "vi") <= 10


def test_release_3_is_as_good_in_hindi(percent):
    assert abs(percent("vani-demo-3", "hi") - percent("vani-demo-1", "hi")) <= 0.7


@pytest.mark.parametrize("name", RELEASES)
def test_a_bundle_is_smaller_than_10_mb(name):
    sizes = [path.stat().st_size for path in (rates.BUNDLES / name).iterdir()]
    assert 1_000_000 < sum(sizes) < 10_000_000
