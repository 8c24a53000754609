"""A multipart/form-data body to a Form, whose files are parts of the body and are never copied.

The library checks the structure and reads the headers, but it is shown the body without its contents: these are found
by searching for the boundary. So a file costs one search, in pieces that let other threads run, and no body can take
the parser through a file byte by byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from predictor.errors import BadRequest

_MAX_PARTS = 64
_MAX_HEADER_BYTES = 1 << 12  # of one part
_MAX_FIELD_BYTES = 1 << 16  # of one part that is no file
_MAX_BOUNDARY = 200  # RFC 2046 allows 70 characters
_SEARCHED_BYTES = 1 << 20  # at once: a third of a millisecond

_PLAIN_ENCODINGS = (b"binary", b"8bit", b"7bit")
_FILE_TYPES = ("audio/", "video/", "application/octet-stream")

_Headers = dict[bytes, bytes]
_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file; `data` is a part of the body. The name and the content type are what the client says."""

    name: str
    content_type: str
    data: memoryview


@dataclass(frozen=True, slots=True)
class Form:
    """The texts of each field in their order, and the files, by the names of their fields."""

    fields: dict[str, list[str]]
    files: dict[str, File]

    def text(self, name: str) -> str | None:
        """The field's text, if it is there."""
        texts = self.fields.get(name, [])
        if len(texts) > 1:
            raise BadRequest(f"the field {name!r} is there {len(texts)} times")
        return texts[0] if texts else None

    def texts(self, name: str) -> list[str]:
        """All texts of a list, whose fields clients name with brackets or without them."""
        return [*self.fields.get(name, []), *self.fields.get(f"{name}[]", [])]

    def file(self, name: str) -> File:
        """The file of that field; BadRequest where there is none."""
        if name not in self.files:
            raise BadRequest(
                f"the field {name!r} must be a file" if name in self.fields else f"no file in field {name!r}"
            )
        return self.files[name]


def read(body: bytes | bytearray, content_type: str) -> Form:
    """The fields and files of a whole body. BadRequest for anything that is malformed, cut off or beyond the limits."""
    boundary = _boundary(content_type)
    spans = list(_contents(body, b"\r\n--" + boundary))
    heads = _heads(body, boundary, spans)
    form, view = Form({}, {}), memoryview(body)
    for headers, (start, end) in zip(heads, spans, strict=True):
        _add(form, headers, view[start:end])
    return form


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type[:_MAX_HEADER_BYTES].encode("latin-1", "replace"))
    boundary = options.get(b"boundary", b"")
    if media_type != b"multipart/form-data" or not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise BadRequest("the content type must be multipart/form-data with a boundary")
    return boundary


def _contents(body: bytes | bytearray, delimiter: bytes) -> Iterator[_Span]:
    """Where each part's content lies: from the empty line after its headers to the next delimiter."""
    at = _first(body, delimiter)
    for number in range(_MAX_PARTS + 1):
        if body.startswith(b"--", at):
            return
        # The empty line may follow the delimiter's own, where a part has no headers.
        empty_line = body.find(b"\r\n\r\n", at, at + _MAX_HEADER_BYTES)
        if not body.startswith(b"\r\n", at) or empty_line < 0 or number == _MAX_PARTS:
            raise BadRequest(
                f"the form is not well-formed, or has more than {_MAX_PARTS} parts, "
                f"or one with more than {_MAX_HEADER_BYTES} bytes of headers"
            )
        start = empty_line + 4
        end = _find(body, delimiter, start)
        if end < 0:
            raise BadRequest("the form is cut off: its last boundary is missing")
        yield start, end
        at = end + len(delimiter)


def _first(body: bytes | bytearray, delimiter: bytes) -> int:
    """Where the first delimiter ends; a line may stand empty before it, but no text."""
    for opening in (delimiter[2:], delimiter):
        if body.startswith(opening):
            return len(opening)
    raise BadRequest("the form does not start with its boundary")


def _find(body: bytes | bytearray, delimiter: bytes, start: int) -> int:
    """`body.find`, in pieces: it holds the interpreter's lock."""
    for at in range(start, len(body), _SEARCHED_BYTES):
        found = body.find(delimiter, at, at + _SEARCHED_BYTES + len(delimiter) - 1)
        if found >= 0:
            return found
    return -1


def _heads(body: bytes | bytearray, boundary: bytes, contents: Sequence[_Span]) -> list[_Headers]:
    """Each part's headers, by their names in lower case, from the body without its contents."""
    heads: list[_Headers] = []
    header: list[bytes] = [b"", b""]
    ended: list[bool] = []

    def add(index: int, data: bytes, start: int, end: int) -> None:
        header[index] += data[start:end]

    def end_header() -> None:
        heads[-1][header[0].lower()] = header[1]
        header[:] = b"", b""

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": lambda: heads.append({}),
            "on_header_field": partial(add, 0),
            "on_header_value": partial(add, 1),
            "on_header_end": end_header,
            "on_end": lambda: ended.append(True),
        },
    )
    starts = [start for start, _ in contents]
    ends = [0, *(end for _, end in contents)]
    closing = ends[-1] + len(b"\r\n--") + len(boundary) + len(b"--")
    try:
        parser.write(b"".join(bytes(body[a:b]) for a, b in zip(ends, [*starts, closing], strict=True)))
    except FormParserError as error:
        raise BadRequest("the form is not well-formed") from error
    if not ended or len(heads) != len(contents):
        raise BadRequest("the form is not well-formed")
    return heads


def _add(form: Form, headers: _Headers, data: memoryview) -> None:
    disposition, options = parse_options_header(headers.get(b"content-disposition"))
    if disposition != b"form-data" or b"name" not in options:
        raise BadRequest("a part of the form has no name")
    name = options[b"name"].decode("utf-8", "replace")
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    if headers.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN_ENCODINGS:
        raise BadRequest(f"the field {name[:40]!r} is encoded; it must be sent as it is")
    # Not every client names a file that comes from memory.
    if b"filename" in options or content_type.lower().startswith(_FILE_TYPES):
        if name in form.files:
            raise BadRequest(f"the field {name[:40]!r} has more than one file")
        form.files[name] = File(options.get(b"filename", b"").decode("utf-8", "replace"), content_type, data)
        return
    if len(data) > _MAX_FIELD_BYTES:
        raise BadRequest(f"the field {name[:40]!r} has more than {_MAX_FIELD_BYTES} bytes of text")
    try:
        form.fields.setdefault(name, []).append(str(data, "utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"the field {name[:40]!r} is not text in UTF-8") from error
