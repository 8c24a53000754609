"""predictor.protocol.multipart: what real clients encode is read without a copy, and all else is refused."""

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import BadRequest
from predictor.protocol.multipart import read

TYPE = "multipart/form-data; boundary=B"
WAV = bytes(range(256)) * 1_250


def encode(data, files):
    """The body and content type as httpx, and so OpenAI's client, writes them."""
    request = httpx.Request("POST", "http://localhost", data=data, files=files)
    return request.read(), request.headers["content-type"]


def part(content=b"x", disposition=b'form-data; name="a"', *headers):
    lines = [b"Content-Disposition: " + disposition, *headers]
    return b"--B\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + content + b"\r\n"


def refusal(body, content_type=TYPE):
    with pytest.raises(BadRequest) as caught:
        read(body, content_type)
    assert len(str(caught.value)) < 300
    return str(caught.value)


CONTENTS = st.binary(max_size=50) | st.sampled_from([b"\r\n", b"\r\n--", b"\r\n\r\n", b"--B--", WAV])
# The library takes a backslash before the closing quote for an escape, even an escaped one; no field of ours has any.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\\"), max_size=5)


@given(
    fields=st.dictionaries(NAMES, st.text(max_size=20), max_size=4),
    files=st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=3),
)
def test_what_httpx_encodes_is_read_as_it_was_sent(fields, files):
    body, content_type = encode(fields, {name: ("a.wav", data, "audio/wav") for name, data in files.items()})
    form = read(body, content_type)
    assert {name: bytes(file.data) for name, file in form.files.items()} == {
        escaped(name): data for name, data in files.items()
    }
    assert form.fields == {escaped(name): [text] for name, text in fields.items()}


def escaped(name):
    """What HTML, and httpx after it, makes of a field's name."""
    for char in ('"', *map(chr, range(0x20))):
        name = name if char == "\x1b" else name.replace(char, f"%{ord(char):02X}")
    return name


def test_repeated_fields_are_a_list_with_brackets_or_without():
    body, content_type = encode({"a": ["1", "2"], "a[]": ["3"], "b": "4"}, {"file": ("x", b"")})
    form = read(body, content_type)
    assert form.texts("a") == ["1", "2", "3"]
    assert form.texts("c") == []
    assert form.text("b") == "4"
    assert form.text("c") is None
    with pytest.raises(BadRequest, match="'a' is there 2 times"):
        form.text("a")


def test_a_file_has_its_name_its_type_and_a_view_of_the_body():
    for kind in (bytes, bytearray):
        body, content_type = encode({}, {"file": ("giọng nói.wav", WAV, "audio/wav")})
        body = kind(body)
        file = read(body, content_type).file("file")
        assert (file.name, file.content_type) == ("giọng nói.wav", "audio/wav")
        assert file.data.obj is body
        assert file.data == WAV


@pytest.mark.parametrize("content_type", [b"audio/wav", b"Application/Octet-Stream", b"video/webm; codecs=opus"])
def test_a_file_without_a_name_is_told_by_its_type(content_type):
    form = read(part(b"\xff\xfe", b'form-data; name="file"', b"Content-Type: " + content_type) + b"--B--", TYPE)
    assert form.file("file").data == b"\xff\xfe"


def test_a_missing_file_is_named():
    form = read(part() + b"--B--", TYPE)
    with pytest.raises(BadRequest, match="no file in field 'file'"):
        form.file("file")
    with pytest.raises(BadRequest, match="'a' must be a file"):
        form.file("a")


@pytest.mark.parametrize("size", [(1 << 20) - 60, (1 << 20) - 30, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_boundary_is_found_wherever_the_search_is_split(size):
    for shift in range(40):
        content = b"\r" * (size + shift)
        assert len(
            read(part(content, b'form-data; name="file"; filename="x"') + b"--B--", TYPE).file("file").data
        ) == len(content)
        if shift == 3 and size > 2_000_000:
            return


@pytest.mark.parametrize(
    "body",
    [
        part() + b"--B--",
        b"\r\n" + part() + b"--B--\r\n",
        part() + b"--B--\r\nwhat stands behind the last boundary is no part",
    ],
)
def test_what_stands_around_the_parts_does_not_matter(body):
    assert read(body, TYPE).fields == {"a": ["x"]}


def test_a_form_may_be_empty():
    assert read(b"--B--", TYPE).fields == {}


@pytest.mark.parametrize("content", [b"", b"\r\n", b"-", b"--B", b"--B--", b"\r\n--", b"\r\n\r\n", b"\r\n--\r\nB"])
def test_contents_may_look_like_boundaries(content):
    assert read(part(content) + b"--B--", TYPE).fields == {"a": [content.decode()]}


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=B",
        "application/x-www-form-urlencoded",
        f"multipart/form-data; boundary={'B' * 201}",
        "multipart/form-data; boundary=Ư",
        "multipart/form-data" + ';";' * 100_000,
    ],
    ids=range(8),
)
def test_a_content_type_without_a_boundary_is_refused(content_type):
    refusal(part() + b"--B--", content_type)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "start"),
        (b"--C--", "start"),
        (b"preamble\r\n" + part() + b"--B--", "start"),
        (b"\r\n" * 100_000 + part() + b"--B--", "start"),
        (part(), "cut off"),
        (part()[:-3], "cut off"),
        (part() + b"--B", "well-formed"),
        (part() + b"--B-", "well-formed"),
        (part() + b"--B\r\n", "well-formed"),
        (part() + b"--Bx" + part() + b"--B--", "well-formed"),
        (part(b"x\r\n--B " + b" " * 100_000) + b"--B--", "well-formed"),
        (b"--B\r\n\r\nx\r\n--B--", "no name"),
        (b"--B\r\nno header\r\n\r\nx\r\n--B--", "well-formed"),
        (b"--B\r\n: x\r\n\r\nx\r\n--B--", "well-formed"),
        (b"--B\r\na: x\ry\r\n\r\nx\r\n--B--", "well-formed"),
        (part(b"x", b"form-data") + b"--B--", "no name"),
        (part(b"x", b'attachment; name="a"') + b"--B--", "no name"),
        (part(b"x", b'form-data; name="a"', b"X: " + b"x" * 5_000) + b"--B--", "4096 bytes"),
        (part(b"x", b'form-data; name="a"', *[b"X: x"] * 50) + b"--B--", "well-formed"),
        (part() * 65 + b"--B--", "64 parts"),
        (part(b"x" * 65_537) + b"--B--", "65536 bytes"),
        (part(b"\xff") + b"--B--", "UTF-8"),
        (
            part(b"eA==", b'form-data; name="a"; filename="x"', b"Content-Transfer-Encoding: base64") + b"--B--",
            "encoded",
        ),
        (part(b"x", b'form-data; name="a"; filename="x"') * 2 + b"--B--", "more than one file"),
    ],
    ids=range(24),
)
def test_a_refusal_says_what_is_wrong(body, field):
    assert field in refusal(body)


def test_sixty_four_parts_are_read():
    assert len(read(part() * 64 + b"--B--", TYPE).fields["a"]) == 64


def test_a_body_full_of_boundaries_costs_no_time():
    refusal(b"--B\r\n" * 2_000_000)
    refusal(part(b"\r\n--Bx" * 2_000_000) + b"--B--")
    refusal(b"--B" + b" " * 10_000_000)


PIECES = st.sampled_from(
    [
        b"--B",
        b"\r\n",
        b"--",
        b"\r",
        b"\n",
        b'Content-Disposition: form-data; name="a"',
        b"; filename=x",
        b"x",
        b"\xff",
        b":",
        part(),
        part(b"y", b'form-data; name="file"; filename="x"'),
        b"--B--",
    ]
)


def reads_or_refuses(*arguments):
    try:
        return read(*arguments)
    except BadRequest as error:
        told = str(error)
    assert len(told) < 300
    return None


@settings(max_examples=200)
@given(pieces=st.lists(PIECES | st.binary(max_size=5), max_size=12))
def test_any_body_is_read_or_refused(pieces):
    reads_or_refuses(b"".join(pieces), TYPE)
    reads_or_refuses(part() + b"".join(pieces), TYPE)


@settings(max_examples=200)
@given(st.data())
def test_a_body_that_was_changed_is_read_or_refused(data):
    body, content_type = encode({"model": "m", "a[]": ["1", "2"]}, {"file": ("a.wav", b"RIFF", "audio/wav")})
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    form = reads_or_refuses(body, content_type)
    assert form is None or sum(map(len, form.fields.values())) + len(form.files) <= 5


@given(content_type=st.text() | st.text().map("multipart/form-data; boundary={}".format))
def test_any_content_type_is_read_or_refused(content_type):
    reads_or_refuses(part() + b"--B--", content_type)
