"""predictor.cache: the same question gets the same answer back, and memory stays below the bound."""

import hashlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import cache
from predictor.cache import TranscriptCache, size_bytes
from predictor.transcript import Word, join


def _transcript(text, words=0):
    return join([Word(f"{text}{n}", n + 0.1, n + 0.9, 1 / (n + 2)) for n in range(words)], "vi", words + 0.5)


def _key(name):
    return cache.key(str(name).encode(), "digest", None)


HELLO = _transcript("chào", 3)
questions = st.tuples(
    st.binary(max_size=8),
    st.text(max_size=4),
    st.none() | st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)


@given(questions, questions)
def test_two_questions_have_one_key_where_they_are_the_same_and_only_there(one, other):
    assert (cache.key(*one) == cache.key(*other)) is (one == other)
    assert cache.key(*one) == cache.key(memoryview(one[0]), one[1], one[2], tuple(one[3]))


def test_audio_that_ends_like_another_question_is_another_question():
    digest = hashlib.sha256(b"audio").digest()
    assert cache.key(digest, "d", None, ()) != cache.key(b"audio", "d", None, ())
    assert cache.key(b"audio", "d", None, ["a", "b"]) != cache.key(b"audio", "d", None, ["a, b"])
    assert cache.key(b"audio", "d", "", ()) != cache.key(b"audio", "d", None, ())


def test_what_was_kept_is_given_back_and_nothing_else():
    kept = TranscriptCache(10_000)
    kept.put(_key("a"), HELLO)
    assert kept.get(_key("a")) is HELLO
    assert kept.get(_key("b")) is None


def test_a_bound_of_nothing_keeps_nothing():
    kept = TranscriptCache(0)
    kept.put(_key("a"), _transcript(""))
    assert (len(kept), kept.held_bytes, kept.get(_key("a"))) == (0, 0, None)


def test_a_transcript_larger_than_the_bound_is_not_kept_and_drops_no_other():
    large = _transcript("a", 100)
    kept = TranscriptCache(size_bytes(large) - 1)
    kept.put(_key("a"), HELLO)
    kept.put(_key("b"), large)
    assert kept.get(_key("a")) is HELLO
    assert kept.get(_key("b")) is None


def test_the_one_unused_for_longest_goes_first():
    kept = TranscriptCache(3 * size_bytes(HELLO))
    for name in ("a", "b", "c"):
        kept.put(_key(name), HELLO)
    kept.get(_key("a"))
    kept.put(_key("d"), HELLO)
    assert [name for name in "abcd" if kept.get(_key(name))] == ["a", "c", "d"]


def test_the_same_question_takes_its_place_once():
    kept = TranscriptCache(10_000)
    for words in (3, 1, 2):
        kept.put(_key("a"), _transcript("a", words))
    assert len(kept) == 1
    assert kept.held_bytes == size_bytes(_transcript("a", 2))


steps = st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 9), st.integers(0, 12)), max_size=80)


@given(steps, st.integers(0, 12_000))
def test_after_any_use_the_bound_holds_and_those_used_last_are_kept(steps, max_bytes):
    kept, model = TranscriptCache(max_bytes), {}
    for step, name, words in steps:
        if step == "g":
            assert kept.get(_key(name)) == model.get(name)
            if name in model:
                model[name] = model.pop(name)
        elif size_bytes(made := _transcript(name, words)) <= max_bytes:
            kept.put(_key(name), made)
            model.pop(name, None)
            model[name] = made
            while sum(map(size_bytes, model.values())) > max_bytes:
                del model[next(iter(model))]
        else:
            kept.put(_key(name), made)
        assert len(kept) == len(model)
        assert kept.held_bytes == sum(map(size_bytes, model.values())) <= max_bytes


@pytest.mark.parametrize("text", ["a", "nghiêng", "नमस्ते", "😀"])
@pytest.mark.parametrize(("words", "entries", "spare"), [(0, 1_400, 2.5), (10, 300, 1.3), (500, 10, 1.1)])
def test_the_estimate_is_what_memory_is_taken_or_a_little_more(text, words, entries, spare):
    kept = TranscriptCache(1 << 40)
    tracemalloc.start()
    try:
        for index in range(entries):
            kept.put(_key(index), _transcript(text, words))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= kept.held_bytes <= taken * spare


@given(st.lists(st.text(max_size=8), max_size=8))
@settings(max_examples=30)
def test_a_longer_transcript_takes_more(texts):
    words = [Word(text, 0.0, 1.0, 0.5) for text in texts]
    sizes = [size_bytes(join(words[:count], "vi", 1.0)) for count in range(len(words) + 1)]
    assert sizes == sorted(set(sizes))
