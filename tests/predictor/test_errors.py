"""predictor.errors: sentences that hold the facts, in the tree that is drawn at the top of the module."""

import pytest

from predictor import errors
from predictor.errors import (
    AudioTooLong,
    BadRequest,
    DeadlineExceeded,
    InferenceFailed,
    InvalidAudio,
    InvalidBundle,
    ModelError,
    Overloaded,
    PayloadTooLarge,
    PredictorError,
    RateLimited,
    Unauthenticated,
    UnknownModel,
    UnsupportedAudio,
)

LEAVES = {
    BadRequest("instances must be a list"): ["instances must be a list"],
    UnsupportedAudio("it looks like a PDF"): ["it looks like a PDF", "WAV", "FLAC", "OGG", "MP3", "WebM", "M4A", "AMR"],
    AudioTooLong(1_800.0): ["1800 seconds"],
    AudioTooLong(0.5): ["0.5 seconds"],
    InvalidAudio("it holds no samples"): ["it holds no samples"],
    Unauthenticated(given=False): ["is needed", "Bearer"],
    Unauthenticated(given=True): ["is not valid"],
    UnknownModel("phowhisper", ["vani-demo", "indic"]): ["'phowhisper'", "vani-demo, indic"],
    UnknownModel("phowhisper", []): ["'phowhisper'", "none"],
    PayloadTooLarge(1_000): ["1000 bytes"],
    RateLimited(limit_seconds=60.0, retry_after_seconds=7): ["60 seconds", "7 s"],
    Overloaded("requests", used=64, limit=63, retry_after_seconds=7): ["64 requests", "63", "7 s"],
    Overloaded("seconds of audio", used=600, limit=600.0, retry_after_seconds=30): ["600 seconds of audio", "30 s"],
    DeadlineExceeded(0.25): ["0.25 s"],
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
    assert len(_drawn()) == 14


@pytest.mark.parametrize(("error", "facts"), LEAVES.items(), ids=lambda v: type(v).__name__)
def test_a_sentence_holds_every_fact_it_was_given(error, facts):
    assert all(fact in str(error) for fact in facts)
    assert isinstance(error, PredictorError)


def test_facts_that_a_caller_needs_are_kept_as_values():
    assert Overloaded("requests", 1, 1, 3).retry_after_seconds == 3
    assert Overloaded("requests", 1, 1, 3).what == "requests"
    assert RateLimited(1, 3).retry_after_seconds == 3
    assert AudioTooLong(30).limit_seconds == 30
    assert InvalidBundle(name for name in ("a", "b")).problems == ("a", "b")


@pytest.mark.parametrize("error", LEAVES, ids=lambda e: type(e).__name__)
def test_the_fault_is_the_operators_exactly_in_model_errors(error):
    assert isinstance(error, ModelError) == isinstance(error, InvalidBundle | InferenceFailed)


def test_what_a_caller_sent_is_cut_and_quoted():
    sentence = str(UnknownModel("a\nb" + "x" * 1_000, ["vani-demo"]))
    assert "\n" not in sentence
    assert len(sentence) < 120
