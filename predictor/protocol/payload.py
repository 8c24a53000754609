"""A JSON body to values: what is long in it is audio, and is cut out before the parser sees it.

A JSON parser holds the interpreter's lock for as long as the body is, 20 ms for ten minutes of audio in base64; finding
where a string ends takes a twentieth of that. What is left must be short, so that a body that is no audio cannot keep a
thread busy, or fill the memory with small objects.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from predictor.errors import BadRequest

_LONG_BYTES = 1 << 14  # from here on, a JSON string is audio rather than a name, and a list is samples
_MAX_HEAD_BYTES = 1 << 21  # of all else: twice what 64 clips just below _LONG_BYTES are
_MAX_BACKSLASHES = 1 << 10  # in a row
_PIECE_BYTES = 1 << 17  # of numbers, parsed at once: about half a millisecond

_Span = tuple[int, int, "memoryview | Numbers"]  # of the body, with its quotes or brackets, and what stands there


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """A long JSON list, not parsed yet: body[start:end] is what stands between its brackets."""

    body: bytes | bytearray
    start: int
    end: int

    def pieces(self) -> Iterator[list[Any]]:
        """The list's values, some ten thousand at a time; BadRequest where it is none."""
        view, at = memoryview(self.body), self.start
        while at < self.end:
            comma = self.body.find(b",", at + _PIECE_BYTES, self.end)
            stop = self.end if comma < 0 else comma
            piece = _parsed(b"".join((b"[", view[at:stop], b"]")))
            if not piece or comma == self.end - 1:
                raise BadRequest("the body is not JSON")
            yield piece
            at = stop + 1


def parse_json(body: bytes | bytearray) -> Any:  # noqa: ANN401  (JSON is what it is)
    """The body's value, in which long strings are memoryviews of the body and long lists are Numbers.

    A long string is what stands between its quotes. One with escapes is no base64 and is refused, here or where it is
    read.
    """
    if len(body) < _LONG_BYTES:
        return _parsed(body)
    view, mark = memoryview(body), uuid.uuid4().hex
    kept: list[bytes | memoryview] = []
    cut: dict[str, memoryview | Numbers] = {}
    at = 0
    for start, end, value in _long_values(body):
        name = f"{mark}{len(cut)}"
        cut[name] = value
        kept += [view[at:start], f'"{name}"'.encode()]
        at = end
    kept.append(view[at:])
    if sum(map(len, kept)) > _MAX_HEAD_BYTES:
        raise _too_much()
    head = b"".join(kept)
    try:
        return _restored(_parsed(head), cut) if cut else _parsed(head)
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error


def _parsed(text: bytes | bytearray) -> Any:  # noqa: ANN401
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise BadRequest("the body is not JSON") from error


def _too_much() -> BadRequest:
    return BadRequest(f"the body has more than {_MAX_HEAD_BYTES} bytes of JSON beside its audio")


def _long_values(body: bytes | bytearray) -> Iterator[_Span]:
    """The long strings, and between strings the long lists, in order. Of text that is no JSON, any spans."""
    at, limit = 0, _MAX_HEAD_BYTES
    while at < len(body):
        opening = body.find(b'"', at)
        gap_end = opening if opening >= 0 else len(body)
        if gap_end - at > _LONG_BYTES:
            for start, end in _long_lists(body, at, gap_end):
                limit += end - start
                yield start, end, Numbers(body, start + 1, end - 1)
        closing = _closing_quote(body, opening) if opening >= 0 else -1
        if closing < 0:
            return
        if closing - opening > _LONG_BYTES:
            limit += closing - opening
            yield opening, closing + 1, memoryview(body)[opening + 1 : closing]
        at = closing + 1
        if at > limit:
            raise _too_much()


def _long_lists(body: bytes | bytearray, at: int, end: int) -> Iterator[tuple[int, int]]:
    """The long lists that hold no list, where no string is between `at` and `end`.

    Most brackets are passed by unseen: only one that no other follows for _LONG_BYTES can open such a list.
    """
    while end - at > _LONG_BYTES:
        near = at + 1 + _LONG_BYTES
        last = max(body.rfind(b"[", at + 1, near), body.rfind(b"]", at + 1, near))
        if last >= 0:
            at = last
            continue
        closing = body.find(b"]", near, end)
        inner = body.rfind(b"[", near, closing)
        if closing < 0:
            return
        if inner < 0 and body[at] == ord("["):
            yield at, closing + 1
        at = closing if inner < 0 else inner


def _closing_quote(body: bytes | bytearray, opening: int) -> int:
    """Where the JSON string ends that starts with the quote at `opening`; -1 where it does not."""
    at = body.find(b'"', opening + 1)
    while at >= 0 and body[at - 1] == ord("\\"):
        before = body[max(opening + 1, at - _MAX_BACKSLASHES) : at]
        backslashes = len(before) - len(before.rstrip(b"\\"))
        if backslashes == _MAX_BACKSLASHES or (backslashes % 2 and at - opening > _LONG_BYTES):
            raise BadRequest("a long string in the body is not base64")
        if backslashes % 2 == 0:
            break
        at = body.find(b'"', at + 1)
    return at


def _restored(value: Any, cut: Mapping[str, memoryview | Numbers]) -> Any:  # noqa: ANN401
    """The parsed value with its long parts back in their places, wherever they stand as values."""
    if isinstance(value, str):
        return cut.get(value, value)
    if isinstance(value, list):
        return [_restored(item, cut) for item in value]
    if isinstance(value, dict):
        return {key: _restored(item, cut) for key, item in value.items()}
    return value
