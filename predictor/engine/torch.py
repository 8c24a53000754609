"""The PyTorch engine, for GPUs: a PhoWhisper-CTC from its weights, in batches. With `whisper` the only door to torch.

Rows of a batch are padded to the longest and the padding is masked, so no row depends on another. The head runs over
blocks of frames, without the padding, and what leaves the device are the likeliest tokens of each frame: 64 windows of
30 s would have 19 GB of logits.
"""

from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from predictor.bundle import Bundle, Graph
from predictor.engine import BatchRule, Emission, whisper
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import Batch

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]

LIKELIEST = 8  # tokens of a frame
_GROUP = 64  # tokens that are looked at together: see likeliest
_BLOCK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}  # of logits in fp32: a cache's, and enough to fill a GPU
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_cuda() -> bool:
    return torch.cuda.is_available()


class TorchEngine:
    """The network of a `ctc` bundle with `weights`, loaded once. `infer` may be called from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        rule: BatchRule | None = None,
        device: Device | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Load the weights; raises InvalidBundle where they are not those of this bundle's network.

        Without a `device` CUDA is taken where there is one; without a `precision` bf16 on CUDA, as these networks were
        trained (fp16 may overflow in them), and fp32 on the CPU, where a call has one thread.
        """
        if not isinstance(bundle.graph, Graph) or not bundle.graph.weights:
            raise InvalidBundle(
                ["it has no weights for PyTorch; convert the model with them, or choose another engine"]
            )
        self.rule = rule or BatchRule()
        self.device: Device = device or ("cuda" if has_cuda() else "cpu")
        self.precision: Precision = precision or ("bf16" if self.device == "cuda" else "fp32")
        if self.device == "cpu":
            torch.set_num_threads(1)
        try:
            network = whisper.from_state(load_file(bundle.path(bundle.graph.weights)))
            network = network.to(self.device, _DTYPES[self.precision])
        except Exception as error:  # safetensors, torch and a CUDA without memory share no base
            raise InvalidBundle([f"{bundle.graph.weights} is not a network that can be loaded"]) from error
        self._network = network
        self._check(bundle)
        self._matrix, self._bias = _whole_groups(network.classifier)

    def _check(self, bundle: Bundle) -> None:
        mel_bins, tokens = self._network.encoder.conv1.in_channels, self._network.classifier.out_features
        if mel_bins != bundle.front_end.mel_bins:
            raise InvalidBundle([f"the network takes {mel_bins} mel bins, and {bundle.front_end.mel_bins} are given"])
        if tokens != len(bundle.vocabulary.tokens):
            raise InvalidBundle([f"the network gives {tokens} tokens, {len(bundle.vocabulary.tokens)} are spelt"])

    def infer(self, batch: Batch) -> list[Emission]:
        """All rows in one call; raises InferenceFailed."""
        try:
            with torch.inference_mode():
                return self._infer(batch)
        except Exception as error:
            raise InferenceFailed from error

    def _infer(self, batch: Batch) -> list[Emission]:
        lengths = torch.from_numpy(batch.lengths)
        features = torch.from_numpy(batch.frames).to(self.device, self._matrix.dtype)
        alike = bool((lengths == features.shape[2]).all())  # nothing to mask, which is faster
        hidden = self._network(features, None if alike else lengths.to(self.device))
        counts = whisper.frames(lengths).tolist()
        heard = hidden[0] if len(counts) == 1 else torch.cat([row[:n] for row, n in zip(hidden, counts, strict=True)])
        rows = max(1, _BLOCK_BYTES[self.device] // (4 * len(self._matrix)))
        found = [self._classify(block) for block in heard.split(rows)]
        log_probs, tokens = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        ends = np.cumsum(counts)[:-1]
        return [Emission(*row) for row in zip(np.split(log_probs, ends), np.split(tokens, ends), strict=True)]

    def _classify(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden [n, D] to log-probabilities float32 [n, LIKELIEST] and tokens int32 [n, LIKELIEST]."""
        logits = functional.linear(hidden, self._matrix, self._bias).float()
        scores, tokens = likeliest(logits, min(LIKELIEST, self._network.classifier.out_features))
        return scores - logits.logsumexp(dim=1, keepdim=True), tokens.int()


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest logits [n, count] of each row [n, V] and where they are, the highest first; V in whole groups.

    As `topk` finds them, in a third of the time: none is outside of the `count` groups with the highest peaks.
    """
    groups = logits.view(len(logits), -1, _GROUP)
    peaks = groups.amax(dim=2)
    best = peaks.topk(min(count, peaks.shape[1])).indices
    candidates = groups.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    scores, places = candidates.topk(count)
    return scores, best.gather(1, places // _GROUP) * _GROUP + places % _GROUP


def _whole_groups(classifier: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    """Its matrix and bias with rows that never win, up to whole groups."""
    fill = -classifier.out_features % _GROUP
    matrix = functional.pad(classifier.weight, (0, 0, 0, fill))
    return matrix, functional.pad(classifier.bias, (0, fill), value=-1e30)
