"""predictor.beam: against every path there is, against best_path, and on the words of real recordings."""

import unicodedata
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import testset
from predictor import audio, beam, bundle, features, transcript
from predictor.bundle import Vocabulary
from predictor.engine import Emission
from predictor.engine.onnx import OnnxEngine
from predictor.hotwords import MAX_CHARACTERS, MAX_HOTWORDS, phrases
from predictor.search import best_path
from predictor.settings import EMBEDDED_BUNDLE

BLANK = 1
TINY = Vocabulary(("?", "", " ", "a", "b"), BLANK, {"xx": (1, 2, 3, 4)})


def _normal(logits):
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _log_probs(path, tokens, rivals=()):
    """Log-probabilities in which path[t] is the best of frame t; `rivals` are (frame, token, probability) beside it."""
    probabilities = np.full((len(path), tokens), 1e-6)
    probabilities[np.arange(len(path)), path] = 1
    for frame, token, probability in rivals:
        probabilities[frame, path[frame]] -= probability
        probabilities[frame, token] = probability
    return np.log(probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


def _collapse(path, gap):
    """What a path of ids says: the definition of best_path, frame by frame."""
    said, last, blanks = [], None, 0
    for token in path:
        if token == BLANK:
            blanks += 1
            continue
        if token != last or blanks > gap:
            said.append(token)
        last, blanks = token, 0
    return tuple(said)


def _letters_in_hotwords(text, hotwords):
    words = text.split()
    inside = set()
    for wanted in (hotword.split() for hotword in hotwords):
        for first in range(len(words) - len(wanted) + 1):
            if wanted and words[first : first + len(wanted)] == wanted:
                inside |= set(range(first, first + len(wanted)))
    return sum(len(words[index]) for index in inside)


def _total(said, scores, hotwords, bonus):
    return scores[said] + bonus * _letters_in_hotwords("".join(TINY.tokens[token] for token in said), hotwords)


@st.composite
def _problems(draw):
    frames = draw(st.integers(1, 5))
    logits = np.random.default_rng(draw(st.integers(0, 10_000))).normal(
        0, draw(st.sampled_from([0.3, 1.0])), (frames, 5)
    )
    words = st.text("ab", min_size=1, max_size=2)
    hotwords = draw(st.lists(st.lists(words, min_size=1, max_size=2).map(" ".join), max_size=4))
    return _normal(logits), hotwords, draw(st.integers(0, 2)), draw(st.sampled_from([0.2, 1.0, 3.0]))


def _same(found, expected):
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("tokens", "starts", "ends", "confidences")
    )


@settings(max_examples=60, deadline=None)
@given(_problems())
def test_of_all_paths_there_are_a_wide_beam_finds_the_best(problem):
    log_probs, hotwords, gap, bonus = problem
    scores = {}
    for path in product(TINY.languages["xx"], repeat=len(log_probs)):
        said, score = _collapse(path, gap), float(log_probs[np.arange(len(path)), path].sum())
        scores[said] = max(score, scores.get(said, -np.inf))
    found = beam.search(Emission(log_probs), TINY, "xx", hotwords, gap, width=10_000, bonus=bonus)
    best = max(_total(said, scores, hotwords, bonus) for said in scores)
    assert _total(tuple(found.tokens.tolist()), scores, hotwords, bonus) == pytest.approx(best, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(_problems(), st.integers(1, 3))
def test_whatever_is_found_is_told_as_best_path_would(problem, width):
    log_probs, hotwords, gap, bonus = problem
    found = beam.search(Emission(log_probs), TINY, "xx", hotwords, gap, width, bonus)
    allowed = log_probs[:, list(TINY.languages["xx"])]
    shares = np.exp(log_probs - np.logaddexp.reduce(allowed, axis=1)[:, None])
    spans = list(zip(found.tokens, found.starts, found.ends, strict=True))
    for (token, start, end), confidence in zip(spans, found.confidences, strict=True):
        assert 0 <= start < end <= len(log_probs)
        highest = float(shares[start:end, token].max())
        assert confidence == pytest.approx(highest, rel=1e-5) or (gap and confidence < highest)
    assert all(before[2] <= after[1] for before, after in pairwise(spans))
    kinds = [found.tokens.dtype, found.starts.dtype, found.ends.dtype, found.confidences.dtype]
    assert kinds == [np.int64, np.int64, np.int64, np.float32]


@given(
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="abAB"), max_size=20), max_size=5),
    st.integers(0, 2),
)
def test_without_a_hotword_that_can_be_spelt_it_is_best_path_to_the_bit(seed, frames, hotwords, gap):
    log_probs = _normal(np.random.default_rng(seed).normal(0, 2, (frames, 5)))
    hotwords = [word for word in hotwords if not set(unicodedata.normalize("NFKD", word).lower()) & set("ab")]
    found = beam.search(Emission(log_probs), TINY, "xx", hotwords, gap)
    assert _same(found, best_path(Emission(log_probs), TINY.languages["xx"], BLANK, gap))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=80) | st.just("a" * 10_000) | st.just(" \t\n"), max_size=20), st.integers(0, 3))
def test_no_hotword_is_an_error(hotwords, seed):
    log_probs = _normal(np.random.default_rng(seed).normal(0, 2, (20, 5)))
    assert beam.search(Emission(log_probs), TINY, "xx", hotwords).tokens.max(initial=0) < len(TINY.tokens)


def test_hotwords_beyond_the_limits_are_not_heard():
    log_probs = _log_probs([3], 5, [(0, 4, 0.45)])
    assert beam.search(Emission(log_probs), TINY, "xx", ["b"]).tokens.tolist() == [4]
    many = [f"{number}" for number in range(10_000)]
    assert beam.search(Emission(log_probs), TINY, "xx", [*many[: MAX_HOTWORDS - 1], "b", *many]).tokens.tolist() == [4]
    assert beam.search(Emission(log_probs), TINY, "xx", [*many, "b"]).tokens.tolist() == [3]
    assert beam.search(Emission(log_probs), TINY, "xx", ["b" + " " * MAX_CHARACTERS]).tokens.tolist() == [3]


CHARACTERS = ("", " ", "a", "h", "i", "k", "m", "n", "t", "K", "ị", "-")
PIECES = ("", "▁min", "h", "▁kha", "i", "t", "▁", "m")  # SentencePiece
BYTES = (
    "",
    "Ġph",
    "á»",
    "Ł",
    "Ń",
    "Ġb",
    "Ã²",
    "Ġ",
)  # byte-level: " ph", two bytes of ở or ờ, the third, " b", "ò", " "


def _heard(tokens, path, rival, hotwords, bonus=0.5):
    """The text of a path (0 is blank) where another token has 45 % of one frame."""
    vocabulary = Vocabulary(tokens, 0, {"xx": tuple(range(len(tokens)))}, "bytes" if tokens is BYTES else "pieces")
    ids = [tokens.index(token) for token in path]
    log_probs = _log_probs(ids, len(tokens), [(rival[0], tokens.index(rival[1]), 0.45)])
    found = beam.search(Emission(log_probs), vocabulary, "xx", hotwords, bonus=bonus)
    return "".join(tokens[token] for token in found.tokens)


@pytest.mark.parametrize("hotword", ["minh", "Minh", "MINH ", "mi\u200dnh", "(Minh)"])
def test_a_hotword_wins_against_what_sounds_alike_whatever_its_case(hotword):
    assert _heard(CHARACTERS, [*"kinh"], (0, "m"), []) == "kinh"
    assert _heard(CHARACTERS, [*"kinh"], (0, "m"), [hotword]) == "minh"


@pytest.mark.parametrize("hotword", ["thị", unicodedata.normalize("NFD", "Thị")])
def test_a_hotword_may_be_composed_or_not(hotword):
    assert _heard(CHARACTERS, [*"thi"], (2, "ị"), [hotword]) == "thị"


@pytest.mark.parametrize("hotwords", [["min"], ["inh"], ["mi", "nh"], ["min h"], ["minh khai"], ["ha minh"], ["m"]])
def test_a_part_of_a_word_or_phrase_earns_nothing(hotwords):
    assert _heard(CHARACTERS, [*"kinh"], (0, "m"), hotwords, bonus=10.0) == "kinh"


@pytest.mark.parametrize("hotword", ["min-kha", "min kha", "min  kha"])
@pytest.mark.parametrize("mark", ["-", " "])
def test_words_may_be_parted_by_anything_that_is_no_letter(hotword, mark):
    assert _heard(CHARACTERS, [*"kin", mark, *"kha"], (0, "m"), [hotword]) == f"min{mark}kha"


def test_a_hotword_counts_after_the_beginning_of_another_has_broken():
    hotwords = ["a minh kha", "minh khai"]
    assert _heard(CHARACTERS, [*"a minh thai"], (7, "k"), hotwords) == "a minh khai"


def test_the_case_of_the_text_is_that_of_the_tokens():
    assert _heard(CHARACTERS, [*"thai"], (0, "K"), ["khai"]) == "Khai"


def test_word_pieces_are_matched_by_what_they_spell():
    assert _heard(PIECES, ["▁min", "h", "▁kha", "t"], (3, "i"), ["Minh Khai"]) == "▁minh▁khai"
    assert _heard(PIECES, ["▁", "t", "▁kha", "i"], (1, "m"), ["m kh"]) == "▁t▁khai"


def test_bytes_are_matched_by_the_characters_that_they_make():
    path, rival = ["Ġph", "á»", "Ń", "Ġb", "Ã²"], (2, "Ł")  # " phờ bò" or " phở bò"
    assert _heard(BYTES, path, rival, []).startswith("Ġphá»Ń")
    assert _heard(BYTES, path, rival, ["phở"]) == "Ġphá»ŁĠbÃ²"
    assert _heard(BYTES, path, rival, ["phờ"]) == "Ġphá»ŃĠbÃ²"


def test_an_echo_within_the_gap_is_part_of_its_token_for_hotwords_too():
    path, rival = [3, BLANK, 3, 4], [(1, 3, 0.01)]
    log_probs = _log_probs(path, 5, rival)
    assert beam.search(Emission(log_probs), TINY, "xx", ["aab"]).tokens.tolist() == [3, 3, 4]
    assert beam.search(Emission(log_probs), TINY, "xx", ["ab"], repeat_gap_frames=1).tokens.tolist() == [3, 4]
    log_probs = _log_probs([3, BLANK, 3, 3], 5, [(3, 4, 0.4)])
    merged = beam.search(Emission(log_probs), TINY, "xx", ["ab"], repeat_gap_frames=1)
    assert list(zip(merged.tokens, merged.starts, merged.ends, strict=True)) == [(3, 0, 3), (4, 3, 4)]
    assert merged.confidences == pytest.approx([1.0, 0.4], abs=1e-4)


def test_only_the_tokens_of_the_language_compete():
    log_probs = _log_probs([0, 3], 5, [(0, 4, 0.3), (1, 0, 0.4)])
    found = beam.search(Emission(log_probs), TINY, "xx", ["bb", "b"])
    assert found.tokens.tolist() == [4, 3]
    assert found.confidences == pytest.approx([1.0, 1.0], abs=1e-3)


@pytest.mark.parametrize("hotwords", [[], ["a"], ["a b", "b"]])
def test_silence_and_nothing_have_no_words(hotwords):
    assert beam.search(Emission(_log_probs([BLANK] * 50, 5)), TINY, "xx", hotwords).tokens.tolist() == []
    assert beam.search(Emission(np.empty((0, 5), np.float32)), TINY, "xx", hotwords).tokens.tolist() == []


# Words that best_path gets wrong in the test set, clip by clip.
MISSED = {
    "vi-natural-002": "điệu",
    "vi-natural-022": "sân bay",
    "vi-natural-043": "Ô tô",
    "vi-natural-047": "dịch bệnh",
    "vi-natural-057": "Cần Thơ",
    "vi-natural-081": "thuế thu nhập",
}
OTHERS = ("Nguyễn Thị Minh Khai", "paracetamol", "kabaddi", "कबड्डी", "12", "quận", "xylophone", "thành phố Huế")


@pytest.fixture(scope="module")
def model():
    return bundle.read(EMBEDDED_BUNDLE)


@pytest.fixture(scope="module")
def heard(model):
    """(clip, log-probabilities) of the clips of MISSED and of as many Hindi ones."""
    engine, result = OnnxEngine(model), []
    hindi = {f"hi-random-{number}" for number in range(150, 190, 6)}
    for clip in testset.read():
        if clip.id in MISSED or clip.id in hindi:
            samples = audio.decode((testset.DIRECTORY / clip.audio).read_bytes(), 60.0).samples
            (emission,) = engine.infer(features.pad([features.extract(samples, model.front_end)]))
            result.append((clip, emission.log_probs))
    return result


def _text(model, hypothesis):
    words = transcript.render(hypothesis, model.vocabulary, model.graph.frame_seconds, 0.0)
    return " ".join(word.text for word in words)


def test_real_words_that_were_missed_are_found_once_they_are_expected(model, heard):
    vocabulary, gap = model.vocabulary, model.graph.repeat_gap_frames
    found = {
        clip.id: _text(model, beam.search(Emission(log_probs), vocabulary, "vi", [*OTHERS, MISSED[clip.id]], gap))
        for clip, log_probs in heard
        if clip.id in MISSED
    }
    assert found == {clip.id: clip.text for clip, _ in heard if clip.id in MISSED}


def test_real_words_stay_as_best_path_has_them_where_none_was_expected(model, heard):
    vocabulary, gap = model.vocabulary, model.graph.repeat_gap_frames
    assert len(heard) == len(MISSED) + 7
    for clip, log_probs in heard:
        plain = best_path(Emission(log_probs), vocabulary.languages[clip.language], vocabulary.blank_id, gap)
        for hotwords in ([], OTHERS):
            assert _same(beam.search(Emission(log_probs), vocabulary, clip.language, hotwords, gap), plain)
        assert _text(model, plain) != clip.text or clip.language == "hi"


@pytest.mark.parametrize(
    ("prompt", "hotwords"),
    [
        ("", ()),
        (" , ;\n. … — ", ()),
        ("Nguyễn Thị Minh Khai, Cần Thơ", ("Nguyễn Thị Minh Khai", "Cần Thơ")),
        ("a, A; a\nb.", ("a", "b")),
        ("Thuốc: paracetamol 2.5 mg (viên).", ("Thuốc", "paracetamol 2.5 mg", "viên")),
        ("कबड्डी। खो खो", ("कबड्डी", "खो खो")),
        ("thành phố   Hồ Chí Minh", ("thành phố Hồ Chí Minh",)),
        ("Hôm nay tôi sẽ nói về giá phở ở Huế. Cần Thơ", ("Hôm", "nay", "tôi", "nói", "giá", "phở", "Huế", "Cần Thơ")),
        ("x" * (MAX_CHARACTERS + 1) + ", ok", ("ok",)),
    ],
)
def test_a_prompt_is_a_list_of_names_and_its_sentences_are_words(prompt, hotwords):
    assert phrases(prompt) == hotwords


@given(st.text() | st.text("ab ,.;", min_size=0, max_size=500))
def test_any_prompt_is_hotwords_within_the_limits(prompt):
    found = phrases(prompt)
    assert len(found) <= MAX_HOTWORDS
    assert all(0 < len(hotword) <= MAX_CHARACTERS and hotword == " ".join(hotword.split()) for hotword in found)
    assert len(set(found)) == len(found)
    assert phrases("\n".join(found)) == found


def test_a_prompt_of_any_length_is_cut_between_words():
    found = phrases("".join(f"name{number} of some length, " for number in range(1_000_000)))
    assert found == tuple(f"name{number} of some length" for number in range(MAX_HOTWORDS))
    assert phrases(f"{'x' * 59}, " * 50 + "y" * 10_000_000) == ("x" * 59,)
    assert phrases("thành phố biển " * 1_000_000) == ("thành", "phố", "biển")
