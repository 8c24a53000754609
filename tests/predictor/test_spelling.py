"""predictor.spelling: characters out of tokens, against decoding all of a text at once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.spelling import as_bytes, byte_alphabet, characters

LETTERS = {byte: character for character, byte in byte_alphabet().items()}


def _as_tokens(pieces):
    return ["".join(LETTERS[byte] for byte in piece) for piece in pieces]


def _text(spelt):
    return "".join(character for character, _, _ in spelt)


@given(st.lists(st.binary(max_size=6)))
def test_bytes_cut_into_any_tokens_decode_as_the_whole_does(pieces):
    spelt = characters(_as_tokens(pieces), "bytes")
    assert _text(spelt) == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), st.data())
def test_a_character_knows_the_tokens_that_hold_its_bytes(text, data):
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)), max_size=8)))
    bounds = [0, *cuts, len(encoded)]
    pieces = [encoded[a:b] for a, b in pairwise(bounds)]
    spelt = characters(_as_tokens(pieces), "bytes")
    token_of = [number for number, piece in enumerate(pieces) for _ in piece]
    at = 0
    for character, first, last in spelt:
        size = len(character.encode())
        assert (first, last) == (token_of[at], token_of[at + size - 1])
        at += size
    assert _text(spelt) == text


def test_what_cannot_go_on_ends_with_the_token_before():
    tokens = _as_tokens([b"\xe1\xbb", b" ", b"a"])
    assert characters(tokens, "bytes") == [("\ufffd", 0, 0), (" ", 1, 1), ("a", 2, 2)]


def test_a_token_that_is_not_of_the_alphabet_stands_for_itself():
    assert as_bytes("Ġph") == b" ph"
    assert as_bytes("<|नमस्ते|>") == "<|नमस्ते|>".encode()


@pytest.mark.parametrize(
    ("spelling", "tokens", "text"),
    [("text", ["a", " ", "ş"], "a ş"), ("pieces", ["▁tôi", "▁đ", "i"], " tôi đi"), ("bytes", ["!", "¬"], "!\ufffd")],
)
def test_each_way_to_spell(spelling, tokens, text):
    assert _text(characters(tokens, spelling)) == text
