"""The demo model: a small convolutional CTC network of QuartzNet's kind (Kriman et al. 2020).

Log-mel frames at 100 Hz pass a stem of stride four, then ten residual blocks at 25 Hz, each a depthwise convolution
over 0.6 s followed by a pointwise network. The head gives the scores of two token frames for each, 50 a second, since
Vietnamese has up to 25 characters a second, too many for 25 frames. A last block, at that rate, sees what its
neighbours are about to say. Padding is masked before every convolution, so an utterance's output does not depend on
what it is batched with.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 4  # feature frames to one frame of the blocks
TOKENS_PER_FRAME = 2
REFINE_KERNEL = 9


@dataclass(frozen=True, slots=True)
class NetworkSize:
    tokens: int
    mel_bins: int = 80
    width: int = 256
    blocks: int = 10
    kernel: int = 15
    refined: bool = False


class _Block(nn.Module):
    """x + mlp(depthwise(norm(x))), x [B, T, C]."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # A 2-d convolution of height one: its channels-last layout is [B, T, C] itself, so nothing is copied.
        self.depthwise = nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2), groups=width)
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.norm(x) * mask
        y = self.depthwise(y.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        y = self.project(functional.gelu(self.expand(y)))
        return x + y


def _identity(width: int, kernel: int) -> _Block:
    """A block that changes nothing until it is trained, so that it can be added to a trained network."""
    block = _Block(width, kernel)
    nn.init.zeros_(block.project.weight)
    nn.init.zeros_(block.project.bias)
    return block


class Network(nn.Module):
    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = asdict(size)
        self.stem_1 = nn.Conv1d(size.mel_bins, size.width, 5, stride=2, padding=2)
        self.stem_2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(size.width, size.kernel) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, TOKENS_PER_FRAME * size.tokens)
        self.refine = nn.ModuleList([_identity(size.tokens, REFINE_KERNEL)] if size.refined else [])

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Features [B, mel, T] and their true lengths int64 [B] to log-probabilities [B, 2 ceil(T / 4), tokens]."""
        time = torch.arange(features.shape[2], device=features.device)
        mask = (time[None] < lengths[:, None]).to(features.dtype)
        x = functional.gelu(self.stem_1(features * mask[:, None])) * mask[:, None, ::2]
        x = functional.gelu(self.stem_2(x)).transpose(1, 2)
        mask = mask[:, ::STRIDE, None]
        for block in self.blocks:
            x = block(x, mask)
        scores = self.head(self.norm(x)).reshape(x.shape[0], -1, self.size["tokens"])
        mask = mask.expand(-1, -1, TOKENS_PER_FRAME).reshape(mask.shape[0], -1, 1)
        for block in self.refine:
            scores = block(scores, mask)
        return functional.log_softmax(scores.float(), dim=-1)


def output_lengths(lengths: Tensor) -> Tensor:
    """Token frames of that many feature frames."""
    return TOKENS_PER_FRAME * ((lengths + STRIDE - 1) // STRIDE)
