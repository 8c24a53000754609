"""predictor.protocol.payload: JSON bodies of any size are read without their audio going through the parser."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import BadRequest
from predictor.protocol.payload import Numbers, parse_json

LONG_AUDIO = "QUJD" * 20_000
LONG_LIST = [round(n * 0.001, 3) for n in range(60_000)]


def refusal(body):
    with pytest.raises(BadRequest) as caught:
        parse_json(body)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def plain(value):
    """What was cut out, as the parser would have given it."""
    if isinstance(value, memoryview):
        return str(value, "utf-8")
    if isinstance(value, Numbers):
        return [number for piece in value.pieces() for number in piece]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"9" * 5_000_000]
)
def test_a_body_that_is_not_json_is_refused_however_deep_it_is(body):
    assert "JSON" in refusal(body)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_long_strings_are_views_of_the_body_and_long_lists_are_numbers_to_come(kind):
    body = kind(json.dumps({"id": 'a "quoted\\" id', "data": [LONG_AUDIO, "short"], "pcm": LONG_LIST}).encode())
    value = parse_json(body)
    assert isinstance(value["data"][0], memoryview)
    assert value["data"][0].obj is body
    assert isinstance(value["pcm"], Numbers)
    assert plain(value) == {"id": 'a "quoted\\" id', "data": [LONG_AUDIO, "short"], "pcm": LONG_LIST}


def test_the_rows_of_a_long_nested_list_are_numbers_each():
    rows = parse_json(json.dumps({"data": [LONG_LIST, [1, 2], LONG_LIST]}).encode())["data"]
    assert [type(row) for row in rows] == [Numbers, list, Numbers]
    assert plain(rows) == [LONG_LIST, [1, 2], LONG_LIST]


def test_long_lists_are_read_in_pieces():
    pieces = list(parse_json(json.dumps(LONG_LIST * 3).encode()).pieces())
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 40_000
    assert [number for piece in pieces for number in piece] == LONG_LIST * 3


@pytest.mark.parametrize("bad", ["1,,2", "x", "1 2", "-", "NaN", "Infinity", "{", '\\"', "1e", "[", "0x1"])
@pytest.mark.parametrize("place", [0, 1 << 14, 1 << 17, 200_000])
def test_a_long_list_that_is_none_is_refused_wherever_it_goes_wrong(bad, place):
    text = ("1," * 150_000)[:place] + bad + "," + "1," * 150_000 + "1"
    with pytest.raises(BadRequest, match=r"JSON|base64"):
        plain(parse_json(f"[{text}]".encode()))


@pytest.mark.parametrize("tail", [",", ",,", ", ", " ,"])
@pytest.mark.parametrize("numbers", [(1 << 13) + 5, 1 << 16, (1 << 16) + 1])
def test_a_comma_after_the_last_number_is_refused(tail, numbers):
    with pytest.raises(BadRequest):
        plain(parse_json(("[" + ",".join("1" * numbers) + tail + "]").encode()))


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([LONG_AUDIO]).encode()[:-3],
        json.dumps([LONG_AUDIO]).encode()[:-5] + b'\\"JD"]',
        b"[" * 600 + b'"' + LONG_AUDIO.encode() + b'"' + b"]" * 600,
        b'{"inputs":' + b"[" * 100_000,
        b'"' * 70_001,
        b"\\" * 70_000,
        b'"' + b"\\" * 3_000_000 + b'"',
        b'"' + b'\\"' * 3_000_000,
        b"]" * 5_000_000,
        b"[]," * 2_000_000,
        b'"a",' * 2_000_000,
        b"[" + b" " * 3_000_000 + b'"a"]',
        b'{"a":' + b"{}" * 2_000_000,
    ],
    ids=range(13),
)
def test_a_long_body_that_is_wrong_is_refused(body):
    refusal(body)


def test_what_is_no_audio_must_be_short():
    kept = json.dumps(["x" * 10_000] * 200).encode()
    assert plain(parse_json(kept)) == ["x" * 10_000] * 200
    assert "2097152 bytes" in refusal(json.dumps(["x" * 10_000] * 220).encode())
    assert len(parse_json(json.dumps([LONG_AUDIO] * 64).encode())) == 64


TEXTS = st.text(max_size=4) | st.sampled_from(['"', "\\", '\\"', "[", "]", ",", "A" * 20_000, "[" + "1," * 10_000])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.lists(st.integers(0, 9), min_size=1, max_size=3).map(lambda numbers: numbers * 3_000)
    ),
    max_leaves=8,
)


@given(value=VALUES, indent=st.none() | st.integers(0, 2))
def test_whatever_is_cut_out_the_value_is_what_was_sent(value, indent):
    body = json.dumps([value, "x" * 20_000], indent=indent, ensure_ascii=False).encode()
    escaped = any(json.dumps(text) != f'"{text}"' for text in strings(value) if len(json.dumps(text)) > 1 << 14)
    if not escaped:
        assert plain(parse_json(body)) == json.loads(body)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        yield from strings(list(value.values()))


@given(st.data())
def test_a_body_that_was_changed_is_read_or_refused(data):
    body = bytearray(json.dumps({"id": "r", "data": [LONG_AUDIO[:20_000], "A"], "pcm": LONG_LIST[:5_000]}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"[", b"]", b",", b"\0"])
        )
    with suppress(BadRequest, UnicodeDecodeError):
        plain(parse_json(body))
