"""predictor.transcript: tokens to words with times, and words to text, JSON and subtitles."""

import html
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import transcript
from predictor.bundle import Vocabulary
from predictor.search import Hypothesis
from predictor.transcript import CUE_CHARACTERS, CUE_PAUSE_SECONDS, CUE_SECONDS, Transcript, Word

VOCABULARY = Vocabulary(("_", " ", "a", "b", "ng", "ư", "क", "ी"), 0, {"vi": (0, 1, 2)})
CLOCK = r"(\d\d+):([0-5]\d):([0-5]\d){mark}(\d{{3}})"


def _hypothesis(spelling, confidences=None, frames=2):
    """One token after another, `frames` frames each and one frame apart."""
    tokens = np.array([VOCABULARY.tokens.index(text) for text in spelling], np.int64)
    starts = np.arange(len(tokens), dtype=np.int64) * (frames + 1)
    given_or_one = np.ones(len(tokens)) if confidences is None else np.array(confidences)
    return Hypothesis(tokens, starts, starts + frames, given_or_one.astype(np.float32))


def _words(*timed):
    return [Word(text, start, end, 0.9) for text, start, end in timed]


def _joined(words, duration=60.0):
    return transcript.join(words, "vi", duration)


def _parse(subtitles, mark):
    """[(start, end, text)] by the grammar of SubRip (mark ",") or WebVTT (mark "."); fails on anything else."""
    header = "WEBVTT\n\n" if mark == "." else ""
    assert subtitles.startswith(header)
    body = subtitles.removeprefix(header)
    blocks = body.removesuffix("\n").split("\n\n") if body else []
    clock = CLOCK.format(mark=re.escape(mark))
    cues = []
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        if mark == ",":
            assert lines.pop(0) == str(number)
        timing, text = lines
        match = re.fullmatch(f"{clock} --> {clock}", timing)
        assert match
        h1, m1, s1, ms1, h2, m2, s2, ms2 = map(int, match.groups())
        start, end = ((h * 60 + m) * 60 + s + ms / 1000 for h, m, s, ms in ((h1, m1, s1, ms1), (h2, m2, s2, ms2)))
        assert start < end
        assert text.strip() == text != ""
        if mark == ".":
            assert not re.search(r"<|-->|&(?!(amp|lt|gt);)", text)
            text = html.unescape(text)
        cues.append((start, end, text))
    return cues


FORMATS = pytest.mark.parametrize(("write", "mark"), [(transcript.to_srt, ","), (transcript.to_vtt, ".")])


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        (["a", "b", " ", "ng", "ư"], ["ab", "ngư"]),
        ([" ", "a", " ", " ", "b", " "], ["a", "b"]),
        ([" ", " "], []),
        ([], []),
        (["क", "ी"], ["की"]),
        (["a", "a"], ["aa"]),
    ],
)
def test_spaces_end_words_wherever_they_stand(spelling, words):
    assert [w.text for w in transcript.render(_hypothesis(spelling), VOCABULARY, 0.02, 0.0)] == words


@given(st.lists(st.sampled_from(VOCABULARY.tokens[1:]), max_size=30))
def test_words_are_those_of_the_spelled_text(spelling):
    words = transcript.render(_hypothesis(spelling), VOCABULARY, 0.02, 0.0)
    assert [w.text for w in words] == "".join(spelling).split()


def test_a_word_lasts_from_its_first_token_to_the_end_of_its_last_within_the_recording():
    first, second = transcript.render(_hypothesis(["a", "b", " ", "ng"]), VOCABULARY, 0.02, 30.0)
    assert (first.start_seconds, first.end_seconds) == (30.0, 30.1)
    assert (second.start_seconds, second.end_seconds) == (30.18, 30.22)


def test_confidence_is_the_geometric_mean_of_a_words_tokens():
    hypothesis = _hypothesis(["a", "b", " ", "ng"], [0.9, 0.4, 0.01, 0.5])
    assert [w.confidence for w in transcript.render(hypothesis, VOCABULARY, 0.02, 0.0)] == [0.6, 0.5]


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8))  # the best of k tokens has at least 1/k
def test_confidence_stays_above_zero_and_up_to_one(confidences):
    (word,) = transcript.render(_hypothesis(["a"] * len(confidences), confidences), VOCABULARY, 0.02, 0.0)
    assert 0 < word.confidence <= 1


def test_a_pause_that_nobody_makes_within_a_word_ends_it():
    tokens = np.array([2, 3, 4, 2], np.int64)  # a b, a long pause, ng, another, a
    starts = np.array([0, 3, 30, 90], np.int64)
    hypothesis = Hypothesis(tokens, starts, starts + 2, np.ones(4, np.float32))
    words = transcript.render(hypothesis, VOCABULARY, 0.02, 1.0)
    assert [(w.text, w.start_seconds, w.end_seconds) for w in words] == [
        ("ab", 1.0, 1.1),
        ("ng", 1.6, 1.64),
        ("a", 2.8, 2.84),
    ]
    closer = replace(hypothesis, starts=np.array([0, 3, 25, 45], np.int64))
    assert [w.text for w in transcript.render(closer, VOCABULARY, 0.02, 0.0)] == ["abnga"]


def test_the_text_is_the_words_with_one_space_between():
    result = _joined(_words(("xin", 0, 1), ("chào", 1, 2)))
    assert (result.text, result.language, result.duration_seconds) == ("xin chào", "vi", 60.0)
    assert [w.text for w in result.words] == ["xin", "chào"]


def test_silence_is_an_empty_transcript_in_every_format():
    silence = transcript.join([], None, 3.5)
    assert (silence.text, silence.words) == ("", ())
    assert transcript.to_srt(silence) == ""
    assert _parse(transcript.to_vtt(silence), ".") == []
    assert json.loads(transcript.to_json(silence)) == {
        "text": "",
        "language": None,
        "duration_seconds": 3.5,
        "words": [],
    }


PRINTABLE = st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=30)


@st.composite
def _spoken(draw):
    """Words in order, some after pauses and some longer than a cue may be."""
    words, clock = [], 0
    for text in draw(st.lists(PRINTABLE | st.just("x" * 90), max_size=25)):
        start = clock + draw(st.sampled_from([0, 20, 100, 799, 800, 801, 5_000]))
        clock = start + draw(st.integers(1, 1_500) | st.just(8_000))
        words.append(Word(text, start / 1000, clock / 1000, draw(st.sampled_from([0.5, 1.0]))))
    return words


@given(_spoken(), st.sampled_from([None, "vi"]), st.floats(0, 1e5))
def test_json_is_one_line_that_reads_back_as_the_transcript(words, language, duration):
    result = transcript.join(words, language, duration)
    line = transcript.to_json(result)
    read = json.loads(line)
    assert "\n" not in line
    assert Transcript(**(read | {"words": tuple(Word(**word) for word in read["words"])})) == result


@FORMATS
@given(words=_spoken())
def test_no_word_is_lost_or_doubled_in_subtitles(write, mark, words):
    cues = _parse(write(_joined(words)), mark)
    assert " ".join(text for *_, text in cues).split(" ") == ([w.text for w in words] or [""])
    if words:
        assert (cues[0][0], cues[-1][1]) == pytest.approx((words[0].start_seconds, words[-1].end_seconds))
    assert all(before[1] <= after[0] for before, after in pairwise(cues))


@given(words=_spoken())
def test_a_cue_of_several_words_is_short_enough_to_read_and_has_no_pause_in_it(words):
    rest = iter(words)
    for start, end, text in _parse(transcript.to_srt(_joined(words)), ","):
        cue = [next(rest) for _ in text.split(" ")]
        if len(cue) > 1:
            assert len(text) <= CUE_CHARACTERS
            assert end - start <= CUE_SECONDS + 1e-6
            pauses = [b.start_seconds - a.end_seconds for a, b in pairwise(cue)]
            assert max(pauses) <= CUE_PAUSE_SECONDS + 1e-6


def test_words_that_fit_into_one_cue_share_it_and_a_pause_parts_them():
    words = _words(("a", 0.0, 0.5), ("b", 0.6, 1.0), ("c", 1.9, 2.0), ("d", 2.1, 2.2))
    assert transcript.to_srt(_joined(words)) == (
        "1\n00:00:00,000 --> 00:00:01,000\na b\n\n2\n00:00:01,900 --> 00:00:02,200\nc d\n"
    )
    assert transcript.to_vtt(_joined(words)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na b\n\n00:00:01.900 --> 00:00:02.200\nc d\n"
    )


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [
        (0.0, "00:00:00,000"),
        (59.9996, "00:01:00,000"),
        (61.25, "00:01:01,250"),
        (3_599.9999, "01:00:00,000"),
        (3_661.5, "01:01:01,500"),
        (359_999.999, "99:59:59,999"),
        (360_000.0, "100:00:00,000"),
    ],
)
def test_clocks_run_over_minutes_and_hours(seconds, clock):
    assert f"{clock} --> " in transcript.to_srt(_joined(_words(("a", seconds, seconds + 1))))


@FORMATS
@pytest.mark.parametrize("text", ["<unk>", "R&D", "-->", "a<b", "&amp;"])
def test_what_a_token_spells_cannot_break_the_grammar_of_subtitles(write, mark, text):
    ((_, _, shown),) = _parse(write(_joined(_words((text, 0, 1)))), mark)
    assert shown == text


def _windows(words, start, end, *, halves=False):
    """What two windows that meet in [start, end] hear of the words: those they have whole, and halves at the edges."""
    left = [w for w in words if w.end_seconds <= end]
    right = [w for w in words if w.start_seconds >= start]
    if halves:
        left += [replace(w, text=w.text[:1], end_seconds=end) for w in words if w.start_seconds < end < w.end_seconds]
        cut = [w for w in words if w.start_seconds < start < w.end_seconds]
        right = [replace(w, text=w.text[1:], start_seconds=start) for w in cut] + right
    return left, right


@st.composite
def _speech(draw, texts=("ba", "bốn", "एक", "nghiêng"), pause=0.0):
    """Words of 0.12 to 0.6 s, in order."""
    clock, words = 0.0, []
    for text in draw(st.lists(st.sampled_from(texts), min_size=1, max_size=40)):
        start = clock + pause + draw(st.sampled_from([0.0, 0.02, 0.1, 0.4]))
        clock = start + draw(st.sampled_from([0.12, 0.2, 0.3, 0.6]))
        words.append(Word(text, round(start, 3), round(clock, 3), 0.9))
    return words


def _shared(draw, words, least):
    """A stretch of the recording, at least so long that it holds the longest word."""
    start = draw(st.floats(-2.0, words[-1].end_seconds))
    return start, start + draw(st.floats(least, 4.0))


@given(st.data(), _speech(), st.booleans())
def test_stitching_two_cuts_of_a_recording_gives_its_words_back(data, words, halves):
    start, end = _shared(data.draw, words, 0.61)
    left, right = transcript.stitch(*_windows(words, start, end, halves=halves), start, end)
    assert left + right == words


@given(st.data(), st.integers(1, 40), st.booleans())
def test_words_are_neither_lost_nor_doubled_where_the_windows_place_them_a_tenth_of_a_second_apart(data, count, halves):
    words = [Word(str(1000 + n % 7), n * 0.4, n * 0.4 + 0.3, 0.9) for n in range(count)]
    start, end = _shared(data.draw, words, 1.2)
    moved = []
    for side in _windows(words, start, end, halves=halves):
        by = [data.draw(st.floats(-0.1, 0.1)) for _ in side]
        pairs = zip(side, by, strict=True)
        moved.append([replace(w, start_seconds=w.start_seconds + d, end_seconds=w.end_seconds + d) for w, d in pairs])
    left, right = transcript.stitch(*moved, start, end)
    assert [w.text for w in left + right] == [w.text for w in words]


def test_a_word_that_the_windows_spell_differently_is_kept_once_from_the_one_that_heard_its_surroundings():
    left = _words(("tôi", 7.0, 7.3), ("đi", 8.4, 8.6), ("học", 9.3, 9.6), ("ba", 9.7, 10.0))
    right = _words(("i", 8.4, 8.6), ("học", 9.3, 9.6), ("bài", 9.72, 10.1), ("mới", 10.3, 10.6))
    kept = [w.text for side in transcript.stitch(left, right, 8.0, 10.0) for w in side]
    assert kept == ["tôi", "đi", "học", "bài", "mới"]


def test_two_windows_that_agree_on_no_word_change_over_in_the_middle():
    left = _words(("a", 8.2, 8.4), ("b", 8.8, 9.2), ("c", 9.5, 9.7))
    right = _words(("x", 8.21, 8.4), ("y", 8.82, 9.2), ("z", 9.5, 9.7))
    kept = [w.text for side in transcript.stitch(left, right, 8.0, 10.0) for w in side]
    assert kept == ["a", "y", "z"]


@pytest.mark.parametrize(("left", "right"), [([], []), (["a"], []), ([], ["b"])])
def test_silence_on_either_side_takes_no_word_of_the_other(left, right):
    sides = [_words(*((text, at, at + 0.2) for text in side)) for side, at in ((left, 7.0), (right, 11.0))]
    assert transcript.stitch(*sides, 8.0, 10.0) == tuple(sides)
