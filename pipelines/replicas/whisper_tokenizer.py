"""A tokenizer in Whisper's files and of its size, made up: bytes in GPT-2's alphabet, merges, and special tokens.

    vocab.json   merges.txt   added_tokens.json   special_tokens_map.json   tokenizer_config.json

256 bytes, 50,000 merges, an empty token (Whisper's own list ends with one), then <|endoftext|>, which is the pad token
and the blank of CTC: 50,258. Some merges make whole Vietnamese words, as trained ones do; the rest are Latin letters.
"""

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

from predictor.spelling import byte_alphabet

MERGES = 50_000
END = "<|endoftext|>"
_TEXT = """
xin chào các bạn hôm nay trời đẹp quá tôi muốn đi chợ mua một ít rau và cá cho bữa tối của gia đình anh ấy nói rằng
ngày mai sẽ có mưa lớn ở thành phố hồ chí minh nhưng đối với em thì không sao cả được những người này là học sinh
"""
WORDS = _TEXT.split()
_SPECIAL = {END: 50_257, "<|startoftranscript|>": 50_258, "<|vi|>": 50_278, "<|transcribe|>": 50_359} | {
    "<|notimestamps|>": 50_363
}


def write(directory: Path) -> list[str]:
    """Write the files; returns the tokens with an id in `vocab.json`, in order: 50,258."""
    merges = list(islice(_merges(), MERGES))
    tokens = [*byte_alphabet(), *(left + right for left, right in merges), "", END]
    _write(directory / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write(directory / "added_tokens.json", _SPECIAL)
    _write(directory / "special_tokens_map.json", {"eos_token": END, "pad_token": END, "unk_token": END})
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", "pad_token": None})
    return tokens


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs whose two halves are known by then and whose whole is new: words from left to right, then combinations."""
    alphabet = {byte: character for character, byte in byte_alphabet().items()}
    known = set(alphabet.values())
    for word in WORDS:
        for text in (" " + word, word):
            characters = "".join(alphabet[byte] for byte in text.encode())
            for end in range(2, len(characters) + 1):
                if characters[:end] not in known:
                    known.add(characters[:end])
                    yield characters[: end - 1], characters[end - 1]
    for size in (1, 2, 3):
        for letters in product(ascii_lowercase, repeat=size):
            for start in ("Ġ", *ascii_lowercase):
                text = start + "".join(letters)
                if text not in known:
                    known.add(text)
                    yield text[:-1], text[-1]


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
