"""Grammars and what is drawn from them."""

import re
import unicodedata
from random import Random

import pytest

from demo import sentences
from demo.sentences import LANGUAGES, RANDOM_WORDS, draw, load_grammar

# Quốc ngữ: the Latin letters without f, j, w and z, the seven of its own, and five tones on twelve vowels.
VOWELS = "aăâeêioôơuưy"
TONES = "\u0300\u0301\u0303\u0309\u0323"
VIETNAMESE = {*"abcdeghiklmnopqrstuvxyăâđêôơư"} | {unicodedata.normalize("NFC", v + t) for v in VOWELS for t in TONES}
# Devanagari's letters, vowel signs, virama, nukta and the three signs for nasals and breath; no digit, no danda.
HINDI = {chr(code) for code in (*range(0x901, 0x904), *range(0x905, 0x93A), 0x93C, *range(0x93E, 0x94E))}
ALPHABETS = {"vi": VIETNAMESE, "hi": HINDI}

SEED = "a seed of these tests"


@pytest.fixture(params=LANGUAGES)
def grammar(request):
    return load_grammar(request.param)


def test_a_grammar_has_at_least_600_distinct_words(grammar):
    assert len(set(grammar.words)) == len(grammar.words) >= 600


def test_words_are_sorted_so_that_a_seed_means_the_same_everywhere(grammar):
    assert list(grammar.words) == sorted(grammar.words)


def test_every_word_is_in_nfc_and_of_its_scripts_alphabet(grammar):
    assert [w for w in grammar.words if not unicodedata.is_normalized("NFC", w)] == []
    assert [w for w in grammar.words if not ALPHABETS[grammar.language].issuperset(w)] == []


def test_every_template_filled_with_every_phrase_leaves_no_brace_and_no_double_space(grammar):
    for template in grammar.templates:
        longest = max([1, *(len(grammar.slots[name]) for name in re.findall(r"\{(\w+)\}", template))])
        for number in range(longest):
            text = template
            for name, phrases in grammar.slots.items():
                text = text.replace(f"{{{name}}}", phrases[number % len(phrases)])
            assert not {"{", "}"} & {*text}, template
            assert text == " ".join(text.split()), template


def test_every_slot_is_used_by_a_template(grammar):
    used = {name for template in grammar.templates for name in re.findall(r"\{(\w+)\}", template)}
    assert sorted(grammar.slots.keys() - used) == []


def test_a_natural_sentence_is_made_of_the_grammars_words(grammar):
    rng = Random(SEED)
    for _ in range(500):
        assert {*grammar.natural(rng).split()} <= {*grammar.words}


def test_a_random_sentence_has_as_many_words_as_its_language_allows(grammar):
    rng = Random(SEED)
    counts = {len(grammar.random(rng).split()) for _ in range(500)}
    fewest, most = RANDOM_WORDS[grammar.language]
    assert counts == {*range(fewest, most + 1)}


def test_drawn_texts_are_distinct_and_none_is_excluded(grammar):
    excluded = {text for _, text in draw(grammar, 300, 0.25, SEED, set())}
    drawn = [text for _, text in draw(grammar, 300, 0.25, SEED, excluded)]
    assert len({*drawn}) == 300
    assert excluded.isdisjoint(drawn)


def test_drawing_leaves_the_excluded_set_as_it_was(grammar):
    excluded = {"một câu"}
    draw(grammar, 10, 0.25, SEED, excluded)
    assert excluded == {"một câu"}


def test_the_same_seed_draws_the_same_and_another_seed_does_not(grammar):
    assert draw(grammar, 100, 0.25, SEED, set()) == draw(grammar, 100, 0.25, SEED, set())
    assert draw(grammar, 100, 0.25, SEED, set()) != draw(grammar, 100, 0.25, SEED + "!", set())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_random_share_is_about_what_was_asked_for(grammar, share):
    kinds = [kind for kind, _ in draw(grammar, 2000, share, SEED, set())]
    assert {*kinds} <= {"natural", "random"}
    # Four standard deviations of a share of 2000; nothing at all where the share leaves no choice. Natural sentences
    # repeat more often than random ones and are drawn anew, which moves the share a little further.
    assert kinds.count("random") / 2000 == pytest.approx(share, abs=0 if share in (0, 1) else 0.05)


def test_a_template_that_names_an_unknown_slot_is_refused_with_the_slots_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "GRAMMARS", tmp_path)
    text = 'language = "vi"\n[slots]\nfood = ["phở"]\n[[templates]]\ntexts = ["ăn {food}", "uống {drink}"]\n'
    (tmp_path / "vi.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^vi\.toml: templates name slots that do not exist: drink$"):
        load_grammar("vi")


def test_words_come_from_templates_and_phrases_but_not_from_the_names_of_slots(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "GRAMMARS", tmp_path)
    text = 'language = "vi"\n[slots]\nfood = ["phở bò", "bún"]\n[[templates]]\ntexts = ["tôi ăn {food}"]\n'
    (tmp_path / "vi.toml").write_text(text, encoding="utf-8")
    assert load_grammar("vi").words == ("bò", "bún", "phở", "tôi", "ăn")
