"""The scripts that languages are written in, and whether a text is."""

import unicodedata
from collections import Counter as Tally
from collections.abc import Mapping
from functools import lru_cache

# By the first words of the Unicode names of their letters. Kashmiri, Sindhi and Manipuri have two in official use, and
# which one a model writes is its training data's choice.
_SCRIPTS = {
    "LATIN": "vi en",
    "DEVANAGARI": "hi mr ne sa kok mai brx doi sd ks",
    "BENGALI": "bn as mni",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "ORIYA": "or",
    "ARABIC": "ur ks sd",
    "OL CHIKI": "sat",
    "MEETEI MAYEK": "mni",
}
LANGUAGES = frozenset(" ".join(_SCRIPTS.values()).split())


def share(characters: Mapping[str, int], language: str) -> float | None:
    """The share of letters, marks not among them, in a script of the language; None without letters or scripts.

    `characters` are those of a text and how often each is there: an hour of speech has fifty thousand, of which a
    hundred are different.
    """
    letters: Tally[str] = Tally()
    for character, count in characters.items():
        if character.isalpha():
            letters[_script(character)] += count
    if language not in LANGUAGES or not letters:
        return None
    return sum(n for script, n in letters.items() if language in _SCRIPTS.get(script, "").split()) / letters.total()


@lru_cache(maxsize=4_096)  # more than a model's vocabulary spells
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    return next((script for script in _SCRIPTS if name.startswith(f"{script} ")), "")
