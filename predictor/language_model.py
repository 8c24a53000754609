"""An n-gram model of words, and what it pays for a text. The only door to kenlm.

    paid for a word = weight x log P(word | the words before it) + word_bonus

KenLM's files (ARPA or its own binary) are made with its `lmplz` and `build_binary` from any text in the model's own
spelling. A word is what stands between spaces; where tokens are syllables, as in Vietnamese, so are the model's words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictor.bundle import Spelling
from predictor.errors import InvalidBundle
from predictor.spelling import following

_NATS = math.log(10)  # KenLM's logarithms are decimal

# KenLM's state after the whole words, the letters of the word that is not whole, the bytes of a character that is not.
Context = tuple[Any, str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModel:
    """A KenLM model, loaded; for any thread. `weight` is without a unit, `word_bonus` in nats a word."""

    model: Any
    weight: float
    word_bonus: float

    @classmethod
    def load(cls, path: Path, weight: float, word_bonus: float) -> "LanguageModel":
        """Raises InvalidBundle, also where KenLM is not installed: without it the bundle would say other words."""
        try:
            import kenlm
        except ImportError as error:
            raise InvalidBundle([f"{path.name} needs KenLM: pip install 'vani[lm]'"]) from error
        try:
            return cls(kenlm.Model(str(path)), weight, word_bonus)
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidBundle([f"{path.name} is no model that KenLM can read"]) from error

    def start(self) -> Any:  # noqa: ANN401  (kenlm.State)
        """The state at the beginning of a sentence."""
        import kenlm

        state = kenlm.State()
        self.model.BeginSentenceWrite(state)
        return state

    def word(self, state: Any, word: str) -> tuple[Any, float]:  # noqa: ANN401
        """The state after one more word, and what is paid for it."""
        after = type(state)()
        return after, self.weight * _NATS * self.model.BaseScore(state, word, after) + self.word_bonus

    def end(self, state: Any) -> float:  # noqa: ANN401
        """What is paid for ending the sentence here."""
        return self.weight * _NATS * float(self.model.BaseScore(state, "</s>", type(state)()))


class Sentence:
    """Reads the spelling of one token after another, and pays for each whole word (a `beam.Reader`)."""

    def __init__(self, model: LanguageModel, tokens: Sequence[str], spelling: Spelling) -> None:
        """`tokens`: the spelling of each column."""
        self._model, self._tokens, self._spelling = model, tokens, spelling
        self.start: Context = (model.start(), "", b"")
        self._known: dict[tuple[Context, int], tuple[Context, float]] = {}

    def read(self, context: Context, column: int) -> tuple[Context, float]:
        """The context after one more token, and what is paid for the word that it ends."""
        known = self._known.get((context, column))
        if known is None:
            state, word, pending = context
            text, pending = following(self._tokens[column], self._spelling, pending)
            total = 0.0
            for character in text:
                if not character.isspace():
                    word += character
                elif word:
                    state, paid = self._model.word(state, word)
                    total, word = total + paid, ""
            known = self._known[context, column] = (state, word, pending), total
        return known

    def end(self, context: Context) -> float:
        """What is paid for the last word, and for the end."""
        state, word, _ = context
        paid = 0.0
        if word:
            state, paid = self._model.word(state, word)
        return paid + self._model.end(state)
