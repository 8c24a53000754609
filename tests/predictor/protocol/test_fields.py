"""predictor.protocol.fields: a value of any type is a file, a language or hotwords, or is refused by name."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import BadRequest
from predictor.protocol.fields import as_decoding, as_hotwords, as_language, from_base64

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.binary().map(memoryview),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 196_607, 196_608, 196_609, 400_000])
def test_base64_is_read_whatever_its_length(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    text = base64.b64encode(data)
    assert from_base64(text.decode(), "x") == from_base64(memoryview(text), "x") == data


@pytest.mark.parametrize("value", ["A", "AA=", "*AAA", "AA==AA==", "AAAA\n", "ưu", " AAAA", "=", "A" * 262_143])
def test_what_is_not_base64_is_refused(value):
    with pytest.raises(BadRequest, match="audio is not base64"):
        from_base64(value, "audio")


def test_padding_between_two_pieces_is_refused():
    with pytest.raises(BadRequest, match="padding in its middle"):
        from_base64("A" * 262_142 + "==" + "AAAA", "audio")


@pytest.mark.parametrize("empty", [None, "", b"", memoryview(b""), "auto", b"auto"])
def test_an_empty_language_is_none(empty):
    assert as_language(empty) is None


@pytest.mark.parametrize("value", ["vi", b"vi", memoryview(b"vi")])
def test_a_language_is_text_or_its_bytes(value):
    assert as_language(value) == "vi"


@pytest.mark.parametrize("value", ["Hà Nội, Huế", "Hà Nội, Huế".encode(), ["Hà Nội", "Huế"], ["Hà Nội, Huế"]])
def test_hotwords_are_phrases_with_commas_or_a_list(value):
    assert as_hotwords(value) == ("Hà Nội", "Huế")


@pytest.mark.parametrize(
    ("value", "decoding"), [(None, "ctc"), ("", "ctc"), ("greedy", "ctc"), (b"ctc", "ctc"), ("rnnt", "rnnt")]
)
def test_greedy_is_ctcs_way_and_ctc_the_default(value, decoding):
    assert as_decoding(value) == decoding


def test_there_are_no_hotwords_where_none_are_given():
    assert as_hotwords(None) == as_hotwords("") == as_hotwords([]) == ()


def reads_or_refuses(read, *arguments):
    try:
        return read(*arguments)
    except BadRequest as error:
        told = str(error)
    assert len(told) < 100
    return None


@given(ANYTHING)
def test_any_value_is_read_or_refused(value):
    for read in (as_language, as_hotwords, as_decoding, lambda v: from_base64(v, "audio")):
        reads_or_refuses(read, value)
