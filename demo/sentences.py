"""Grammar files to sentences: what the synthetic speakers say.

A grammar is a set of templates over slots of phrases (`grammar/<language>.toml`). Natural sentences come from
the templates; word strings drawn evenly from the whole vocabulary keep the model from learning the grammar
by heart, and bring the rare words as often as the common ones.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random

LANGUAGES = ("vi", "hi")
GRAMMARS = Path(__file__).parent / "grammar"
RANDOM_WORDS = {"vi": (3, 9), "hi": (2, 6)}  # about two to three seconds of speech either way

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Grammar:
    """The sentences of one language: `templates` with {slot} marks, `slots` of phrases, `words` distinct and sorted."""

    language: str
    templates: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]
    words: tuple[str, ...]

    def natural(self, rng: Random) -> str:
        """One sentence from the templates."""
        return _SLOT.sub(lambda slot: rng.choice(self.slots[slot[1]]), rng.choice(self.templates))

    def random(self, rng: Random) -> str:
        """A string of words that mean nothing together."""
        return " ".join(rng.choices(self.words, k=rng.randint(*RANDOM_WORDS[self.language])))


def load_grammar(language: str) -> Grammar:
    """Read `grammar/<language>.toml`; raises ValueError where a template names a slot that does not exist."""
    content = tomllib.loads((GRAMMARS / f"{language}.toml").read_text(encoding="utf-8"))
    templates = tuple(text for entry in content["templates"] for text in entry["texts"])
    slots = {name: tuple(phrases) for name, phrases in content["slots"].items()}
    unknown = {name for text in templates for name in _SLOT.findall(text)} - slots.keys()
    if unknown:
        raise ValueError(f"{language}.toml: templates name slots that do not exist: {', '.join(sorted(unknown))}")
    phrases = [phrase for values in slots.values() for phrase in values]
    words = {word for text in (*(_SLOT.sub(" ", t) for t in templates), *phrases) for word in text.split()}
    return Grammar(language, templates, slots, tuple(sorted(words)))


def draw(grammar: Grammar, count: int, random_share: float, seed: str, exclude: set[str]) -> list[tuple[str, str]]:
    """`count` distinct (kind, text), kind "natural" or "random", none of them in `exclude`."""
    rng = Random(seed)
    seen = set(exclude)
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        kind = "random" if rng.random() < random_share else "natural"
        text = grammar.random(rng) if kind == "random" else grammar.natural(rng)
        if text not in seen:
            seen.add(text)
            drawn.append((kind, text))
    return drawn
