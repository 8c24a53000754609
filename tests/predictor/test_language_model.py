"""predictor.language_model and the beam over it, with KenLM itself: against every path there is."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import beam
from predictor.bundle import Vocabulary
from predictor.engine import Emission
from predictor.errors import InvalidBundle
from predictor.language_model import LanguageModel, Sentence
from predictor.search import best_path

pytest.importorskip("kenlm", reason="KenLM is not installed: it is built from source, by pip install 'vani[lm]'")

ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.5\t<unk>
0\t<s>\t-0.3
-0.9\t</s>
-0.6\ta\t-0.4
-1.1\tb\t-0.2
-1.3\tab\t-0.1

\\2-grams:
-0.2\t<s> a
-0.3\ta b
-0.1\tb </s>
-1.9\ta a

\\end\\
"""
TINY = Vocabulary(("", " ", "a", "b"), 0, {"xx": (0, 1, 2, 3)})


@pytest.fixture(scope="module")
def arpa(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "tiny.arpa"
    path.write_text(ARPA)
    return path


@pytest.fixture(scope="module")
def model(arpa):
    return LanguageModel.load(arpa, weight=0.7, word_bonus=0.4)


def _paid(model, text):
    """The definition: KenLM's own score of the sentence, weighed, and the bonus for each word."""
    words = text.split()
    return model.weight * math.log(10) * model.model.score(" ".join(words)) + model.word_bonus * len(words)


def _earned(reader, columns):
    context, total = reader.start, 0.0
    for column in columns:
        context, paid = reader.read(context, column)
        total += paid
    return total + reader.end(context)


@given(st.lists(st.integers(1, 3), max_size=12))
def test_a_text_read_token_by_token_is_paid_as_a_whole(model, columns):
    text = "".join(TINY.tokens[column] for column in columns)
    assert _earned(Sentence(model, TINY.tokens, "text"), columns) == pytest.approx(_paid(model, text))


def test_pieces_and_bytes_are_words_by_what_they_spell(model):
    text = _paid(model, "a b ab")
    assert _earned(Sentence(model, ["▁a", "▁", "b"], "pieces"), [0, 1, 2, 0, 2]) == pytest.approx(text)
    assert _earned(Sentence(model, ["a", "Ġ", "b", "Ġa"], "bytes"), [0, 1, 2, 3, 2]) == pytest.approx(text)


def _collapsed(path):
    return "".join(TINY.tokens[token] for before, token in zip((-1, *path), path, strict=False) if token != before)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_the_beam_finds_the_best_of_all_paths(model, seed, frames):
    logits = np.random.default_rng(seed).normal(0, 1.5, (frames, 4))
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    scores = {}
    for path in product(range(4), repeat=frames):
        text = _collapsed(path)
        total = float(log_probs[np.arange(frames), path].sum()) + _paid(model, text)
        scores[" ".join(text.split())] = max(total, scores.get(" ".join(text.split()), -math.inf))
    found = beam.search(Emission(log_probs), TINY, "xx", width=10_000, model=model)
    said = " ".join("".join(TINY.tokens[token] for token in found.tokens).split())
    assert scores[said] == pytest.approx(max(scores.values()), abs=1e-3)


def test_a_likelier_sentence_wins_where_the_sound_leaves_it_open(model):
    probabilities = np.float32([[0.01, 0.01, 0.97, 0.01], [0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.51, 0.47]])
    emission = Emission(np.log(probabilities))
    assert best_path(emission, range(4), 0).tokens.tolist() == [2, 1, 2]
    assert beam.search(emission, TINY, "xx", model=model).tokens.tolist() == [2, 1, 3]


def test_silence_wins_where_every_word_costs_more_than_it_sounds(arpa):
    strict = LanguageModel.load(arpa, weight=2.0, word_bonus=-9.0)
    emission = Emission(np.log(np.float32([[0.4, 0.05, 0.5, 0.05]])))
    assert best_path(emission, range(4), 0).tokens.tolist() == [2]
    assert beam.search(emission, TINY, "xx", model=strict).tokens.tolist() == []


def test_hotwords_and_the_model_pay_together(model):
    probabilities = np.float32([[0.01, 0.01, 0.97, 0.01], [0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.51, 0.47]])
    found = beam.search(Emission(np.log(probabilities)), TINY, "xx", ["a a"], bonus=3.0, model=model)
    assert found.tokens.tolist() == [2, 1, 2]


@pytest.mark.parametrize("content", [b"", b"not a model", ARPA[:150].encode(), bytes(range(256)) * 20])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.arpa"
    path.write_bytes(content)
    with pytest.raises(InvalidBundle, match=r"broken\.arpa"):
        LanguageModel.load(path, 0.5, 0.0)
