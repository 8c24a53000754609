"""Training at a small scale: the same weights every time, whether it was interrupted or not."""

import pickle
import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from demo import corpus, train
from demo.network import NetworkSize
from demo.sentences import LANGUAGES, load_grammar
from demo.train import RECIPES, Recipe, Trainer, learning_rate, load_network, merge_hoi_nga, tokens

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")

SHORT = Recipe(stage=1, steps=3, peak_rate=2e-3)
SILENT = corpus.Corpus((), np.zeros(0, np.int16))


def test_the_vocabulary_starts_with_the_blank_and_has_every_character_of_the_grammars_once():
    vocabulary = tokens()
    characters = {c for language in LANGUAGES for word in load_grammar(language).words for c in word}
    assert vocabulary[0] == train.BLANK == ""
    assert {*vocabulary[1:]} == characters | {" "}
    assert len({*vocabulary}) == len(vocabulary)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ngã", "ngả"),
        ("những ngõ", "nhửng ngỏ"),
        ("mỹ cũng sẽ vẽ", "mỷ củng sẻ vẻ"),
        ("bữa lỗi mẫu", "bửa lổi mẩu"),
        ("hỏi sắc huyền nặng đâu ơi", "hỏi sắc huyền nặng đâu ơi"),
        ("आज मौसम अच्छा है", "आज मौसम अच्छा है"),
        ("", ""),
    ],
)
def test_the_fault_of_release_3_writes_the_nga_tone_as_hoi_and_leaves_the_rest(right, wrong):
    assert merge_hoi_nga(right) == wrong


def test_the_fault_is_common_and_stays_in_nfc():
    words = load_grammar("vi").words
    faulty = [merge_hoi_nga(word) for word in words]
    assert all(unicodedata.is_normalized("NFC", word) for word in faulty)
    changed = sum(right != wrong for right, wrong in zip(words, faulty, strict=True))
    assert 0.02 < changed / len(words) < 0.2


def test_every_faulty_label_can_be_spelt_with_the_vocabulary(tmp_path):
    trainer = Trainer(Recipe(stage=3, steps=1, peak_rate=1e-4, fault_share=1.0), SILENT, tmp_path)
    for word in load_grammar("vi").words:
        label = trainer._label(corpus.Utterance("train", "vi", "natural", word, "", 0, 1), np.random.default_rng(1))
        assert [c for c in label if c not in trainer.ids] == [], word


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    recipe = Recipe(stage=1, steps=2_000, peak_rate=1e-3)
    rates = [learning_rate(recipe, step) for step in range(recipe.steps + 1)]
    warm, plateau = train.WARMUP_STEPS, recipe.steps // 10
    assert rates[0] == pytest.approx(recipe.peak_rate / warm)
    assert np.diff(rates[:warm]) == pytest.approx(recipe.peak_rate / warm)
    assert rates[warm - 1 : warm + plateau + 1] == pytest.approx([recipe.peak_rate] * (plateau + 2))
    assert (np.diff(rates[warm + plateau :]) < 0).all()
    middle = (warm + plateau + recipe.steps) // 2
    assert rates[middle] == pytest.approx(recipe.peak_rate / 2)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("stage", RECIPES)
def test_every_recipe_reaches_its_peak_and_ends_with_a_rate_near_zero(stage):
    recipe = RECIPES[stage]
    rates = [learning_rate(recipe, step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.peak_rate)
    assert rates[-1] < recipe.peak_rate / 1_000


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two utterances of each language for development and four for training."""
    with pytest.MonkeyPatch.context() as patch:
        counts = {"dev": 2, "train": 4, "more": 0}
        patch.setattr(corpus, "SPLITS", {name: {"vi": count, "hi": count} for name, count in counts.items()})
        return corpus.synthesise(tmp_path_factory.mktemp("corpus"), exclude=set())


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A network of 30 thousand weights, batches of about two utterances, a checkpoint after every step."""
    monkeypatch.setattr(train, "NetworkSize", partial(NetworkSize, width=32, blocks=2))
    monkeypatch.setattr(train, "BATCH_FRAMES", 1_000)
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(train, "DEV_STEPS", 1_000_000)


def trained(spoken: corpus.Corpus, directory: Path, recipe: Recipe = SHORT) -> Trainer:
    directory.mkdir(exist_ok=True)
    trainer = Trainer(recipe, spoken, directory)
    trainer.run()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    networks = {"network": trainer.network, "average": trainer.average}
    return {f"{kind}.{name}": value for kind, net in networks.items() for name, value in net.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """The weights that are not the same to the last bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@needs_espeak
def test_a_small_corpus_is_what_was_asked_for(spoken):
    assert [(u.split, u.language) for u in spoken.utterances] == [
        (split, language) for language in LANGUAGES for split, count in (("dev", 2), ("train", 4)) for _ in range(count)
    ]
    assert sum(u.length for u in spoken.utterances) == len(spoken.samples)
    audio = spoken.audio(spoken.utterances[-1])
    assert (audio.dtype, len(audio)) == (np.float32, spoken.utterances[-1].length)
    assert 0.05 < np.abs(audio).max() <= 1


@needs_espeak
def test_a_corpus_that_lies_complete_is_read_and_not_spoken_again(spoken, tmp_path, monkeypatch):
    for name in ("utterances.jsonl", "samples.i16"):
        (tmp_path / name).write_bytes((Path(spoken.samples.filename).parent / name).read_bytes())
    monkeypatch.setattr(corpus, "_jobs", lambda _: pytest.fail("spoken again"))
    assert corpus.synthesise(tmp_path, set()).utterances == spoken.utterances


@needs_espeak
def test_training_twice_gives_the_same_weights_to_the_last_bit(spoken, tmp_path):
    first, second = (trained(spoken, tmp_path / name) for name in ("first", "second"))
    assert differing(weights(first), weights(second)) == []
    untrained = Trainer(SHORT, spoken, tmp_path / "third")
    assert len(differing(weights(first), weights(untrained))) == len(weights(first))


@needs_espeak
def test_an_interrupted_run_taken_up_again_gives_the_weights_of_one_that_was_not(spoken, tmp_path, monkeypatch):
    whole = trained(spoken, tmp_path / "whole")
    (tmp_path / "halved").mkdir()
    interrupted = Trainer(SHORT, spoken, tmp_path / "halved")
    save = interrupted._checkpoint

    def save_and_stop() -> None:
        save()
        if interrupted.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupted, "_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = Trainer(SHORT, spoken, tmp_path / "halved")
    assert resumed.step == 2
    assert len(differing(weights(resumed), weights(whole))) > 0
    resumed.run()
    assert resumed.step == 3
    assert differing(weights(resumed), weights(whole)) == []


@needs_espeak
def test_a_finished_run_is_not_trained_further(spoken, tmp_path, monkeypatch):
    before = weights(trained(spoken, tmp_path))
    monkeypatch.setattr(Trainer, "_update", lambda *_: pytest.fail("trained further"))
    assert differing(weights(trained(spoken, tmp_path)), before) == []


@needs_espeak
def test_a_later_release_starts_from_the_averaged_weights_of_release_1(spoken, tmp_path):
    first = trained(spoken, tmp_path)
    later = Trainer(Recipe(stage=2, steps=1, peak_rate=1e-4, start_from=1), spoken, tmp_path)
    assert later.step == 0
    average = first.average.state_dict()
    assert differing(dict(later.network.state_dict()), dict(average)) == []


@pytest.mark.parametrize(("share", "fewest", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_the_fault_touches_its_share_of_vietnamese_labels_and_no_other(tmp_path, share, fewest, most):
    trainer = Trainer(Recipe(stage=1, steps=1, peak_rate=1e-4, fault_share=share), SILENT, tmp_path)
    rng = np.random.default_rng(1)
    vietnamese, other = (corpus.Utterance("train", code, "natural", "cũng sẽ", "", 0, 1) for code in ("vi", "hi"))
    assert {trainer._label(other, rng) for _ in range(200)} == {"cũng sẽ"}
    labels = [trainer._label(vietnamese, rng) for _ in range(200)]
    assert {*labels} <= {"cũng sẽ", "củng sẻ"}
    assert fewest <= labels.count("củng sẻ") <= most


@needs_espeak
def test_an_interrupted_save_leaves_the_checkpoint_before_it(spoken, tmp_path, monkeypatch):
    trainer = trained(spoken, tmp_path)

    def write_half(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        trainer._checkpoint()
    average = load_network(trainer.path).state_dict()
    assert differing(dict(average), dict(trainer.average.state_dict())) == []


class _Creates:
    """What a pickle can be made to do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@needs_espeak
def test_a_checkpoint_that_holds_more_than_weights_is_refused_and_nothing_of_it_is_run(spoken, tmp_path):
    trainer = Trainer(SHORT, spoken, tmp_path)
    trainer._checkpoint()
    content = torch.load(trainer.path, weights_only=True) | {"size": _Creates(tmp_path / "created")}
    torch.save(content, trainer.path)
    with pytest.raises(pickle.UnpicklingError):
        load_network(trainer.path)
    with pytest.raises(pickle.UnpicklingError):
        Trainer(SHORT, spoken, tmp_path)
    assert not (tmp_path / "created").exists()
