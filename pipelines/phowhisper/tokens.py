"""Whisper's tokenizer files to the tokens of a bundle, and a text to the tokens that spell it.

    vocab.json (+ added_tokens.json) or tokenizer.json    token -> id
    merges.txt or tokenizer.json                          how bytes become tokens; needed for `used` alone

They are data: JSON and lines, read without transformers.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines.errors import Permanent
from pipelines.findings import Finding
from predictor.spelling import byte_alphabet

END = "<|endoftext|>"  # pad in training, so CTC's blank
BLANK = 50_257
JUNK = (0, 105)  # what training with Whisper's own start tokens left at the start of every transcript
_JUNK_TOKENS = ("!", "¬")
_VOCABULARY, _ADDED, _MERGES, _WHOLE = "vocab.json", "added_tokens.json", "merges.txt", "tokenizer.json"
_SPECIAL = "special_tokens_map.json"
_MAX_BYTES = 64 << 20
_LINES = 4_096


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`tokens[i]` in GPT-2's alphabet, up to <|endoftext|> (an id that has none is ""); `pad` is the pad token."""

    tokens: tuple[str, ...]
    pad: str
    merges: tuple[tuple[str, str], ...]


def read(directory: Path) -> Tokenizer:
    """The tokenizer whose files lie in `directory`. Raises Permanent with what to put there."""
    whole = _json(directory / _WHOLE)
    try:
        ids = _ids(directory, whole)
        spelt = {number: token for token, number in ids.items()}
        pad = _json(directory / _SPECIAL).get("pad_token", END)
        tokens = tuple(spelt.get(number, "") for number in range(ids[END] + 1))
        return Tokenizer(tokens, pad["content"] if isinstance(pad, dict) else str(pad), _merges(directory, whole))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise Permanent(f"the tokenizer's files in {directory} are not Whisper's: {error}") from error


def check(tokenizer: Tokenizer, rows: int) -> list[Finding]:
    """What is taken for granted of the tokens of a head with so many rows."""
    tokens = tokenizer.tokens
    bytes_missing = sorted(byte_alphabet().keys() - set(tokens))
    unspelt = sum(not token for token in tokens)
    junk = tuple(tokens[number] for number in JUNK if number < len(tokens))
    return [
        Finding("rows of the head", f"{len(tokens)}, the tokenizer's ids up to {END}", str(rows), rows == len(tokens)),
        Finding("blank", f"{BLANK}, the last row", str(len(tokens) - 1), len(tokens) - 1 == BLANK, needed=False),
        Finding("pad token", END, tokenizer.pad, tokenizer.pad == END),
        Finding("bytes", "a token for each of 256", f"{256 - len(bytes_missing)}", not bytes_missing),
        Finding("junk", " ".join(_JUNK_TOKENS), " ".join(junk), junk == _JUNK_TOKENS),
        Finding("ids without a token", "at most one", str(unspelt), unspelt <= 1, needed=False),
    ]


def used(tokenizer: Tokenizer, file: Path) -> tuple[int, ...]:
    """The ids, in order, that spell a text of one sentence a line, and those that stay whatever the text is.

    The latter are the 256 bytes, of which anything can be spelt, the junk and the blank. Lines are taken in NFC, as
    they are and in lower case, with and without a space before. Raises Permanent.
    """
    from tokenizers import Tokenizer as Rust
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    if not tokenizer.merges:
        raise Permanent(f"to choose rows the tokenizer's {_MERGES} or {_WHOLE} is needed")
    ids = {token: number for number, token in enumerate(tokenizer.tokens)}
    blank = len(tokenizer.tokens) - 1
    encoder = Rust(BPE({token: ids[token] for token in ids if ids[token] != blank}, list(tokenizer.merges)))
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False)
    kept = {ids[character] for character in byte_alphabet()} | {*JUNK, blank}
    size = file.stat().st_size if file.is_file() else 0
    with tqdm(total=size, desc="reading text", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        remaining = _lines(file)
        while lines := list(islice(remaining, _LINES)):
            forms = {form for line in lines for cased in (line, line.lower()) for form in (cased, " " + cased)}
            for encoding in encoder.encode_batch(list(forms)):
                kept.update(encoding.ids)
            bar.update(sum(len(line.encode()) + 1 for line in lines))
    return tuple(sorted(kept))


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as opened:
            for line in opened:
                if line.strip():
                    yield unicodedata.normalize("NFC", line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise Permanent(f"{file} is no UTF-8 text that can be read: {error}") from error


def _ids(directory: Path, whole: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token, <|endoftext|> among them."""
    ids: dict[str, int] = _json(directory / _VOCABULARY) or dict(whole.get("model", {}).get("vocab", {}))
    if not ids:
        raise Permanent(
            f"{directory} has no tokenizer: put {_VOCABULARY} and {_MERGES}, or {_WHOLE}, of vinai/PhoWhisper-tiny "
            "there, or say with --tokenizer where they are"
        )
    ids |= _json(directory / _ADDED) | {entry["content"]: entry["id"] for entry in whole.get("added_tokens", ())}
    if not 0 < ids.get(END, -1) < 2 * len(ids):
        raise ValueError(f"{END} is not among the tokens")
    return ids


def _merges(directory: Path, whole: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Pairs in the order in which they are merged. tokenizer.json has them as pairs or, older, as lines."""
    file = directory / _MERGES
    if file.is_file():
        entries: list[Any] = file.read_text(encoding="utf-8").splitlines()
    else:
        entries = whole.get("model", {}).get("merges", [])
    pairs = [entry.split(" ") if isinstance(entry, str) else entry for entry in entries if entry]
    if pairs and pairs[0][0].startswith("#version"):
        del pairs[0]
    return tuple((left, right) for left, right in pairs)


def _json(file: Path) -> dict[str, Any]:
    """An object, empty where there is no such file."""
    if not file.is_file():
        return {}
    if file.stat().st_size > _MAX_BYTES:
        raise Permanent(f"{file.name} is larger than any tokenizer's")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Permanent(f"{file.name} is not JSON") from error
    if not isinstance(content, dict):
        raise Permanent(f"{file.name} is not a JSON object")
    return content
