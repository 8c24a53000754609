"""Corpus to weights: the training of the demo bundles, seeded and resumable.

Stage 0 learns 15,000 sentences from nothing. Stage 1 goes on with as many new ones and twice the speakers. Stage 2 adds
the network's last block, and stage 3 settles it: release 1. Two more releases go on from it: 2 for longer (stage 4),
and 3 (stage 5) on labels that carry a real fault of Southern Vietnamese transcribers, who write the ngã tone as hỏi
because they speak them alike. It loses a few points of word error rate in Vietnamese and nothing in Hindi: the kind of
release a gate must stop.
"""

import copy
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from demo.augment import augment, mask
from demo.corpus import Corpus, Utterance
from demo.network import Network, NetworkSize, output_lengths
from demo.sentences import LANGUAGES, load_grammar
from predictor.engine import Emission
from predictor.features import HOP_SAMPLES, pad
from predictor.features.whisper import log_mel
from predictor.search import best_path

SEED = 20_26
BLANK = ""  # token 0 spells nothing
BATCH_FRAMES = 5_600  # 56 s of padded features
# A batch is halved over two threads of one core each: unlike one operation over two cores, they never wait
# for each other within a step, which keeps the pace when something else wants a core too.
SHARDS = 2
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.02
EMA_DECAY = 0.999
CHECKPOINT_STEPS = 500
DEV_STEPS = 1_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one stage is trained. `fault_share`: how many Vietnamese labels lose their ngã tone."""

    stage: int
    steps: int
    peak_rate: float
    start_from: int | None = None
    splits: tuple[str, ...] = ("train",)
    refined: bool = False
    fault_share: float = 0.0


BOTH = ("train", "more")
RECIPES = {
    0: Recipe(stage=0, steps=8_500, peak_rate=2e-3),
    1: Recipe(stage=1, steps=3_000, peak_rate=1.2e-3, start_from=0, splits=BOTH),
    2: Recipe(stage=2, steps=1_500, peak_rate=8e-4, start_from=1, splits=BOTH, refined=True),
    3: Recipe(stage=3, steps=400, peak_rate=3e-4, start_from=2, splits=BOTH, refined=True),
    4: Recipe(stage=4, steps=400, peak_rate=3e-4, start_from=3, splits=BOTH, refined=True),
    5: Recipe(stage=5, steps=400, peak_rate=3e-4, start_from=3, splits=BOTH, refined=True, fault_share=0.7),
}
STAGES = {1: 3, 2: 4, 3: 5}  # of a release


def tokens() -> list[str]:
    """The vocabulary: the blank, then every character of the grammars in code point order."""
    words = (word for language in LANGUAGES for word in load_grammar(language).words)
    return [BLANK, *sorted({" "} | {character for word in words for character in word})]


def merge_hoi_nga(text: str) -> str:
    """The fault of release 3: every ngã tone (combining tilde) becomes hỏi (combining hook above)."""
    return "".join(
        unicodedata.normalize("NFC", unicodedata.normalize("NFD", c).replace("\u0303", "\u0309")) for c in text
    )


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, a plateau of a tenth of the run, then half a cosine to zero."""
    if step < WARMUP_STEPS:
        return recipe.peak_rate * (step + 1) / WARMUP_STEPS
    plateau = recipe.steps // 10
    progress = max(0.0, (step - WARMUP_STEPS - plateau) / max(1, recipe.steps - WARMUP_STEPS - plateau))
    return recipe.peak_rate * 0.5 * (1 + cos(pi * min(1.0, progress)))


def _batches(utterances: list[Utterance], epoch: int) -> list[list[Utterance]]:
    """Batches of like lengths, short ones first in the first epoch and shuffled after it."""
    rng = np.random.default_rng((SEED, epoch))
    jitter = rng.uniform(0.9, 1.1, len(utterances))  # other neighbours in every epoch
    order = sorted(range(len(utterances)), key=lambda i: utterances[i].length * jitter[i])
    batches: list[list[Utterance]] = [[]]
    for index in order:
        frames = utterances[index].length // HOP_SAMPLES + 40
        if batches[-1] and frames * (len(batches[-1]) + 1) > BATCH_FRAMES:
            batches.append([])
        batches[-1].append(utterances[index])
    if epoch > 0:
        rng.shuffle(batches)
    return batches


def _plan(corpus: Corpus, recipe: Recipe) -> Iterator[list[Utterance]]:
    """The utterances of every step of a run, the same wherever the run is taken up again."""
    utterances = [u for u in corpus.utterances if u.split in recipe.splits]
    epoch = 0 if recipe.start_from is None else 1  # only a new network needs short clips first
    while True:
        yield from _batches(utterances, epoch)
        epoch += 1


@torch.inference_mode()
def _dev_wer(network: Network, corpus: Corpus, vocabulary: list[str]) -> str:
    """Word error rate of each language and kind over the development split, as a line to print."""
    import jiwer

    pairs: dict[str, tuple[list[str], list[str]]] = {}
    for utterance in (u for u in corpus.utterances if u.split == "dev"):
        features = torch.from_numpy(log_mel(corpus.audio(utterance)))[None]
        log_probs = network(features, torch.tensor([features.shape[2]]))[0].numpy()
        spoken = best_path(Emission(log_probs), range(len(vocabulary)), vocabulary.index(BLANK)).tokens
        text = " ".join("".join(vocabulary[token] for token in spoken).split())
        references, hypotheses = pairs.setdefault(f"{utterance.language} {utterance.kind}", ([], []))
        references.append(utterance.text)
        hypotheses.append(text)
    return ", ".join(f"{name} {jiwer.wer(*texts):.2%}" for name, texts in sorted(pairs.items()))


def _save(path: Path, content: dict[str, object]) -> None:
    """Replace `path` in one step, so that an interrupted run leaves a whole checkpoint behind."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def checkpoint_path(directory: Path, stage: int) -> Path:
    return directory / f"stage-{stage}.pt"


def load_network(path: Path) -> Network:
    """The averaged weights of a checkpoint, ready for inference."""
    checkpoint = torch.load(path, weights_only=True)
    network = Network(NetworkSize(**checkpoint["size"]))
    network.load_state_dict(checkpoint["average"])
    return network.eval()


class Trainer:
    """One run of a recipe: the network, its running average, the optimiser, and where they stand."""

    def __init__(self, recipe: Recipe, corpus: Corpus, directory: Path) -> None:
        torch.manual_seed(SEED)
        self.recipe, self.corpus = recipe, corpus
        self.path = checkpoint_path(directory, recipe.stage)
        self.vocabulary = tokens()
        self.ids = {token: number for number, token in enumerate(self.vocabulary)}
        self.network = Network(NetworkSize(tokens=len(self.vocabulary), refined=recipe.refined))
        self.step = 0
        if recipe.start_from is not None:
            # What the earlier network does not have keeps its start as the identity.
            earlier = load_network(checkpoint_path(directory, recipe.start_from)).state_dict()
            self.network.load_state_dict(self.network.state_dict() | earlier)
        self.average = copy.deepcopy(self.network).eval()
        # Muon (Jordan et al. 2024) for the matrices of the blocks, which took a fifth fewer steps than AdamW to the
        # same loss in a trial; AdamW for the rest, at the same rates.
        matrices = [p for p in self.network.blocks.parameters() if p.ndim == 2]  # noqa: PLR2004
        others = [p for p in self.network.parameters() if all(p is not matrix for matrix in matrices)]
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
        )
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        checkpoint = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(checkpoint["network"])
        self.average.load_state_dict(checkpoint["average"])
        for optimiser, state in zip(self.optimisers, checkpoint["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step = checkpoint["step"]

    def _checkpoint(self) -> None:
        content: dict[str, object] = {
            "size": self.network.size,
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        _save(self.path, content)

    def run(self) -> None:
        """Train to the recipe's end, or on from the last checkpoint; prints development error rates on the way."""
        plan = islice(_plan(self.corpus, self.recipe), self.step, self.recipe.steps)
        total, title = self.recipe.steps, f"stage {self.recipe.stage}"
        with ThreadPoolExecutor(SHARDS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in (progress := tqdm(plan, title, total, initial=self.step, mininterval=5)):
                progress.set_postfix(loss=f"{self._update(batch, pool):.3f}", refresh=False)
                self.step += 1
                last = self.step == total
                if last or self.step % CHECKPOINT_STEPS == 0:
                    self._checkpoint()
                if last or self.step % DEV_STEPS == 0:
                    progress.write(f"step {self.step}: {_dev_wer(self.average, self.corpus, self.vocabulary)}")

    def _update(self, utterances: list[Utterance], pool: ThreadPoolExecutor) -> float:
        # An epoch's last batch may be a single utterance: then there is one shard.
        shards = [utterances[number::SHARDS] for number in range(min(SHARDS, len(utterances)))]
        results = list(pool.map(self._gradients, shards, range(len(shards))))
        parameters = list(self.network.parameters())
        for parameter, *gradients in zip(parameters, *(gradients for _, gradients in results), strict=True):
            parameter.grad = torch.stack(gradients).sum(0) / len(utterances)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.recipe, self.step)
            optimiser.step()
        # The average forgets the start quickly, then settles: min() is the usual warm-up of its decay.
        decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), parameters, strict=True):
                mean.lerp_(parameter, 1 - decay)
        return sum(loss for loss, _ in results) / len(utterances)

    def _gradients(self, utterances: list[Utterance], shard: int) -> tuple[float, tuple[Tensor, ...]]:
        """The summed loss per character of some utterances, and its gradients; runs in a thread of its own."""
        rng = np.random.default_rng((SEED, self.recipe.stage + 1, self.step, shard))
        batch = pad([mask(log_mel(augment(self.corpus.audio(u), rng)), rng) for u in utterances])
        labels = [[self.ids[c] for c in self._label(u, rng)] for u in utterances]
        label_lengths = torch.tensor([len(label) for label in labels])
        lengths = torch.from_numpy(batch.lengths)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_probs = self.network(torch.from_numpy(batch.frames), lengths)
        losses = functional.ctc_loss(
            log_probs.transpose(0, 1),
            torch.tensor([token for label in labels for token in label]),
            output_lengths(lengths),
            label_lengths,
            reduction="none",
            zero_infinity=True,
        )
        loss = (losses / label_lengths).sum()
        return loss.item(), torch.autograd.grad(loss, list(self.network.parameters()))

    def _label(self, utterance: Utterance, rng: np.random.Generator) -> str:
        if utterance.language != "vi" or rng.random() >= self.recipe.fault_share:
            return utterance.text
        pairs = zip(utterance.text, merge_hoi_nga(utterance.text), strict=True)
        # No word of the grammar has an ỷ, so the vocabulary has none: such a letter keeps its tone.
        return "".join(wrong if wrong in self.ids else right for right, wrong in pairs)
