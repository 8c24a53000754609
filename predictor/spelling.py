"""Tokens to characters: what a text is made of, and which token each character begins in.

Three ways to spell are in use (`bundle.Spelling`): characters as they are, SentencePiece's pieces, and the bytes of
GPT-2 and Whisper, where a character may take several tokens.
"""

import codecs
from collections.abc import Sequence
from functools import cache

from predictor.bundle import Spelling

_WORD_START = "▁"
_REPLACEMENT = "\ufffd"


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte that each character of GPT-2's alphabet stands for.

    Printable bytes stand for themselves, and the others are the characters from 256 on: "Ġ" is a space.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def as_bytes(token: str) -> bytes:
    """The bytes of a token of GPT-2's alphabet; a character from elsewhere stands for itself."""
    alphabet = byte_alphabet()
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in token)


def characters(tokens: Sequence[str], spelling: Spelling) -> list[tuple[str, int, int]]:
    """The characters that tokens spell in a row, each with the number of the first and the last token it is made of.

    Bytes that make no character become U+FFFD.
    """
    if spelling == "bytes":
        return _decoded([as_bytes(token) for token in tokens])
    if spelling == "pieces":
        tokens = [token.replace(_WORD_START, " ") for token in tokens]
    return [(character, number, number) for number, token in enumerate(tokens) for character in token]


def following(token: str, spelling: Spelling, pending: bytes = b"") -> tuple[str, bytes]:
    """The text that one more token adds, and the bytes of a character that is not whole; `pending` were so before."""
    if spelling != "bytes":
        return token.replace(_WORD_START, " ") if spelling == "pieces" else token, b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(pending + as_bytes(token))
    return text, decoder.getstate()[0]


def _decoded(tokens: Sequence[bytes]) -> list[tuple[str, int, int]]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    result: list[tuple[str, int, int]] = []
    first = last = 0  # the tokens of the bytes that are not a whole character yet
    for number, token in enumerate(tokens):
        for byte in token:
            broken = bool(decoder.getstate()[0])
            text = decoder.decode(bytes([byte]))
            if not broken:
                first = number
            elif len(text) > 1 or (text and text[0] == _REPLACEMENT):  # what was there could not go on
                result.append((text[0], first, last))
                first, text = number, text[1:]
            result += [(character, first, number) for character in text]
            last = number
    result += [(character, first, last) for character in decoder.decode(b"", final=True)]
    return result
