"""Hotwords: the words and phrases that a caller expects, and what a text earns by having them.

This is shallow-fusion biasing (Zhao et al. 2019) as icefall and sherpa do it: a match has its bonus letter by letter,
so that a beam keeps it until its end, and gives it back where it breaks. What tokens spell is matched, so that it does
not matter how a model cuts words.
"""

import re
import unicodedata
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from predictor.bundle import Spelling
from predictor.spelling import following

BONUS = 0.5  # nats a letter: benchmarks/hotwords.py chose it, on the odd clips of the test set
MAX_HOTWORDS = 100
MAX_CHARACTERS = 60  # of a hotword
_NAME_WORDS = 6  # "thành phố Hồ Chí Minh" has five; a phrase of more is a sentence
_LEAST_LETTERS = 3  # of a sentence's word: shorter ones are mostly grammar, and sound like much else
_SEPARATORS = re.compile(r'[,;\n\r!?…"“”()\[\]।॥،؛؟۔᱾꯫]|[.:](?!\w)')

# What was read: the longest end of the text that begins a hotword, None inside a word that does not; which of its
# characters, a bit each, are letters of no whole hotword yet; the bytes of an unfinished character.
Context = tuple[str | None, int, bytes]


def phrases(prompt: str) -> tuple[str, ...]:
    """The hotwords in a prompt: what stands between punctuation marks or line ends, at most MAX_HOTWORDS, in order.

    A phrase of more than six words is taken for running text, and its words of three or more letters are hotwords each.
    Duplicates and what is longer than MAX_CHARACTERS are left out.
    """
    size = MAX_HOTWORDS * (MAX_CHARACTERS + 2)
    known = prompt if len(prompt) <= size else prompt[:size].rpartition(" ")[0]
    found: dict[str, str] = {}
    for words in map(str.split, _SEPARATORS.split(known)):
        parts = [" ".join(words)] if len(words) <= _NAME_WORDS else [w for w in words if len(w) >= _LEAST_LETTERS]
        for part in parts:
            if len(part) <= MAX_CHARACTERS:
                found.setdefault(_letters(part).strip(), part)
    return tuple(islice((part for letters, part in found.items() if letters), MAX_HOTWORDS))


class Hotwords:
    """Reads the spelling of one token after another, and pays for the letters that lie in hotwords (a `beam.Reader`).

    Letters count as they come, as long as they may become a whole hotword, and are taken back, as a negative count,
    where they do not.
    """

    start: Context = ("", 0, b"")

    def __init__(self, hotwords: Sequence[str], tokens: Sequence[str], spelling: Spelling, bonus: float) -> None:
        """`tokens`: the spelling of each column; `bonus`: what a letter is worth, in nats."""
        self._bonus = bonus
        short = (hotword for hotword in islice(hotwords, MAX_HOTWORDS) if len(hotword) <= MAX_CHARACTERS)
        self.hotwords = {" ".join(_letters(hotword).split()) for hotword in short} - {""}
        self._beginnings = {hotword[:end] for hotword in self.hotwords for end in range(len(hotword) + 1)}
        self._tokens = tokens
        self._spelling = spelling
        self._known: dict[tuple[Context, int], tuple[Context, float]] = {}

    def read(self, context: Context, column: int) -> tuple[Context, float]:
        """The context after one more token, and what its letters add or take back."""
        known = self._known.get((context, column))
        if known is None:
            beginning, open_letters, pending = context
            text, pending = following(self._tokens[column], self._spelling, pending)
            count = 0
            for character in _letters(text):
                beginning, open_letters, more = self._step(beginning, open_letters, character)
                count += more
            known = self._known[context, column] = (beginning, open_letters, pending), self._bonus * count
        return known

    def end(self, context: Context) -> float:
        """What the end of the text adds or takes back: it ends a word, and nothing may become whole any more."""
        beginning, open_letters, _ = context
        _, open_letters, count = self._step(beginning, open_letters, " ")
        return self._bonus * (count - open_letters.bit_count())

    def _step(self, beginning: str | None, open_letters: int, character: str) -> tuple[str | None, int, int]:
        if beginning is None:
            return ("" if character == " " else None), 0, 0
        before, whole = open_letters.bit_count(), 0
        if character == " ":
            if not beginning or beginning[-1] == " ":
                return beginning, open_letters, 0
            ended = open_letters & _last_bits(_longest_end(beginning, self.hotwords))
            open_letters ^= ended
            whole = ended.bit_count()
        after = _longest_end(beginning + character, self._beginnings)
        open_letters = (open_letters << 1 | (character != " ")) & _last_bits(after)
        return after, open_letters, whole + open_letters.bit_count() - before


def _longest_end(text: str, known: AbstractSet[str]) -> str | None:
    """The longest end of the text that starts a word and is known (Aho and Corasick's failure links, unrolled)."""
    while text not in known:
        _, space, text = text.partition(" ")
        if not space:
            return None
    return text


def _last_bits(text: str | None) -> int:
    return (1 << len(text or "")) - 1


def _letters(text: str) -> str:
    """Letters, marks and digits in NFC without case; a space for what parts words; nothing for joiners and the like."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    kinds = ((character, unicodedata.category(character)) for character in folded)
    return "".join(character if kind[0] in "LMN" else " " for character, kind in kinds if kind != "Cf")
