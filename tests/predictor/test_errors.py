"""predictor.errors: sentences that hold the facts, in the tree that is drawn at the top of the module."""

import pytest

from predictor import errors
from predictor.errors import (
    AudioTooLong,
    BadRequest,
    InferenceFailed,
    InvalidAudio,
    InvalidBundle,
    ModelError,
    Overloaded,
    PredictorError,
    UnsupportedAudio,
)

LEAVES = {
    BadRequest("instances must be a list"): ["instances must be a list"],
    UnsupportedAudio("it looks like a PDF"): ["it looks like a PDF", "WAV", "FLAC", "OGG", "MP3", "WebM", "M4A", "AMR"],
    AudioTooLong(1_800.0): ["1800 seconds"],
    AudioTooLong(0.5): ["0.5 seconds"],
    InvalidAudio("it holds no samples"): ["it holds no samples"],
    Overloaded(pending=64, limit=63, retry_after_seconds=7): ["64", "63", "7 s"],
    InvalidBundle(["model.onnx is missing", "notes.txt is extra"]): ["model.onnx is missing", "notes.txt is extra"],
    InferenceFailed(): ["not the caller's", "log"],
}


def _branch(kind: type, depth: int = 0) -> list[tuple[int, str]]:
    below = [line for child in kind.__subclasses__() for line in _branch(child, depth + 1)]
    return [(depth, kind.__name__), *below]


def _drawn() -> list[tuple[int, str]]:
    lines = [line[4:].split("  ")[0] if "──" not in line else line[4:] for line in (errors.__doc__ or "").splitlines()]
    tree = [line for line in lines if "── " in line or line == "PredictorError"]
    return [(line.find("── ") // 4 + 1 if "── " in line else 0, line.split("── ")[-1].split()[0]) for line in tree]


def test_the_tree_at_the_top_of_the_module_is_the_tree_of_classes():
    assert sorted(_drawn()) == sorted(_branch(PredictorError))
    assert len(_drawn()) == 9


@pytest.mark.parametrize(("error", "facts"), LEAVES.items(), ids=lambda v: type(v).__name__)
def test_a_sentence_holds_every_fact_it_was_given(error, facts):
    assert all(fact in str(error) for fact in facts)
    assert isinstance(error, PredictorError)


def test_facts_that_a_caller_needs_are_kept_as_values():
    assert Overloaded(1, 1, 3).retry_after_seconds == 3
    assert AudioTooLong(30).limit_seconds == 30
    assert InvalidBundle(name for name in ("a", "b")).problems == ("a", "b")


@pytest.mark.parametrize("error", LEAVES, ids=lambda e: type(e).__name__)
def test_the_fault_is_the_operators_exactly_in_model_errors(error):
    assert isinstance(error, ModelError) == isinstance(error, InvalidBundle | InferenceFailed)
