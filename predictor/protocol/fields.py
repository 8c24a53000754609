"""Single values that most formats have in common: audio in base64, a language, hotwords. All may be of any type."""

import binascii

from predictor.errors import BadRequest
from predictor.hotwords import phrases
from predictor.search import Decoding

_DECODINGS: dict[str, Decoding] = {"ctc": "ctc", "greedy": "ctc", "rnnt": "rnnt"}
_BASE64_PIECE = 1 << 18  # characters, a multiple of four


def from_base64(value: object, field: str) -> bytes:
    """The file in base64 text, as `payload.parse_json` gives it: a str, or a memoryview where it is long."""
    if not isinstance(value, str | memoryview):
        raise BadRequest(f"{field} must hold base64 text")
    try:
        text = value.encode("ascii") if isinstance(value, str) else value
        # In pieces: decoding holds the interpreter's lock, and a long recording would hold up every other thread.
        pieces = range(0, len(text), _BASE64_PIECE)
        decoded = [binascii.a2b_base64(text[at : at + _BASE64_PIECE], strict_mode=True) for at in pieces]
    except ValueError as error:
        raise BadRequest(f"{field} is not base64") from error
    if any(len(piece) < _BASE64_PIECE // 4 * 3 for piece in decoded[:-1]):
        raise BadRequest(f"{field} is not base64: it has padding in its middle")
    return decoded[0] if len(decoded) == 1 else b"".join(decoded)


def as_language(value: object) -> str | None:
    """A language's code; None where it is left out, empty or "auto". Whether the model has it is the recognizer's
    business."""
    if value is None:
        return None
    code = _text(value, "language must be text, such as 'vi'")
    return None if code in ("", "auto") else code


def as_decoding(value: object) -> Decoding:
    """How to search: "greedy" is CTC's way. Whether the model can is the recognizer's business."""
    name = "ctc" if value is None else _text(value, "decoding must be text") or "ctc"
    if name not in _DECODINGS:
        raise BadRequest(f"decoding {name[:40]!r} is not offered: {', '.join(_DECODINGS)} are")
    return _DECODINGS[name]


def as_hotwords(value: object) -> tuple[str, ...]:
    """The phrases of a text, separated by commas, or of a list of texts."""
    if value is None:
        return ()
    wanted = "hotwords must be text with commas, or a list of texts"
    if isinstance(value, list | tuple):
        return phrases(",".join(_text(item, wanted) for item in value))
    return phrases(_text(value, wanted))


def _text(value: object, wanted: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        raise BadRequest(wanted)
    return str(value, "utf-8", "replace")
