"""The networks of IndicConformer in PyTorch, as NeMo builds them, for replicas of any size with random weights.

Only structure, parameter names and shapes matter here: they decide what the exported graphs look like and cost. What is
beyond an utterance's length changes nothing: every layer that mixes frames masks it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

TOKENS = 5632  # 22 languages of 256
MEL_BINS = 80
MAX_FRAMES = 1024  # that the table of relative positions reaches: 82 s
_MASKED = -10_000.0
_EXPANSION = 4  # of the feed-forward modules
_KERNEL = 9  # frames of the convolution module
_MAX_CHANNELS = 256  # of the subsampling


@dataclass(frozen=True, slots=True)
class Size:
    """`width` of the encoder and `pred` of prediction network and joint; `subsampling` is 4 or 8 frames to one."""

    layers: int
    width: int
    heads: int
    pred: int
    subsampling: int


def _valid(lengths: Tensor, count: int) -> Tensor:
    """1.0 where a frame lies within its utterance: float32 [B, count]."""
    return (torch.arange(count, device=lengths.device)[None] < lengths[:, None]).float()


class Subsampling(nn.Module):
    """NeMo's `dw_striding`: convolutions of stride 2 over time and mel, all but the first one depthwise separable."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        channels, steps = min(_MAX_CHANNELS, size.width), size.subsampling.bit_length() - 1
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU()]
        for _ in range(steps - 1):
            depthwise = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
            layers += [depthwise, nn.Conv2d(channels, channels, 1), nn.ReLU()]
        self.conv = nn.ModuleList(layers)
        self.out = nn.Linear(channels * math.ceil(MEL_BINS / size.subsampling), size.width)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, mel, T] to [B, T', width], and T' of each row."""
        x = features.transpose(1, 2)[:, None]
        x = x * _valid(lengths, x.size(2))[:, None, :, None]
        for layer in self.conv:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                if layer.stride == (2, 2):
                    lengths = (lengths + 1) // 2
                x = x * _valid(lengths, x.size(2))[:, None, :, None]
        return self.out(x.transpose(1, 2).flatten(2)), lengths


class Attention(nn.Module):
    """Multi-head attention with relative positions (Dai et al. 2019), with names as in NeMo."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_v, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.randn(heads, width // heads) * 0.1)
        self.pos_bias_v = nn.Parameter(torch.randn(heads, width // heads) * 0.1)

    def forward(self, x: Tensor, valid: Tensor, positions: Tensor) -> Tensor:
        batch, count, width = x.size(0), x.size(1), x.size(2)
        q = self.linear_q(x).view(batch, count, self.heads, -1)
        k = self.linear_k(x).view(batch, count, self.heads, -1).permute(0, 2, 3, 1)
        v = self.linear_v(x).view(batch, count, self.heads, -1).transpose(1, 2)
        p = self.linear_pos(positions).view(1, -1, self.heads, width // self.heads).permute(0, 2, 3, 1)
        content = (q + self.pos_bias_u).transpose(1, 2) @ k
        place = self._shifted((q + self.pos_bias_v).transpose(1, 2) @ p)[:, :, :, :count]
        hidden = (valid[:, None, None, :] * valid[:, None, :, None]) == 0
        scores = ((content + place) / math.sqrt(width // self.heads)).masked_fill(hidden, _MASKED)
        weights = scores.softmax(dim=-1).masked_fill(hidden, 0.0)
        mixed: Tensor = self.linear_out((weights @ v).transpose(1, 2).reshape(batch, -1, width))
        return mixed

    @staticmethod
    def _shifted(scores: Tensor) -> Tensor:
        """Rows of [B, heads, T, 2 T - 1] by distance, the farthest frame ahead first, moved to begin with frame 0."""
        batch, heads, rows, columns = scores.size()
        padded = functional.pad(scores, (1, 0)).view(batch, heads, -1, rows)
        return padded[:, :, 1:].view(batch, heads, rows, columns)


class Convolution(nn.Module):
    """Pointwise, gate, depthwise, batch norm, Swish, pointwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, _KERNEL, padding=_KERNEL // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = functional.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1) * valid[:, None]
        x = self.pointwise_conv2(functional.silu(self.batch_norm(self.depthwise_conv(x))))
        return x.transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, _EXPANSION * width), nn.Linear(_EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(functional.silu(self.linear1(x)))
        return out


class Layer(nn.Module):
    """A Conformer block (Gulati et al. 2020): half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.norm_feed_forward1, self.feed_forward1 = nn.LayerNorm(width), FeedForward(width)
        self.norm_self_att, self.self_attn = nn.LayerNorm(width), Attention(width, size.heads)
        self.norm_conv, self.conv = nn.LayerNorm(width), Convolution(width)
        self.norm_feed_forward2, self.feed_forward2 = nn.LayerNorm(width), FeedForward(width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor, positions: Tensor) -> Tensor:
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), valid, positions)
        x = x + self.conv(self.norm_conv(x), valid)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        out: Tensor = self.norm_out(x)
        return out


class Encoder(nn.Module):
    """`audio_signal` [B, mel, T], `length` [B] to `outputs` [B, width, T'], `encoded_lengths` [B]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.pre_encode = Subsampling(size)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.positions = _positions(size.width)  # no buffer: as a constant it becomes a node of the graph, as published

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.pre_encode(audio_signal, length)
        count = x.size(1)
        positions = self.positions[:, MAX_FRAMES - count : MAX_FRAMES + count - 1]
        valid = _valid(lengths, count)
        for layer in self.layers:
            x = layer(x, valid, positions)
        return x.transpose(1, 2), lengths


def _positions(width: int) -> Tensor:
    """Sines and cosines of the distances from MAX_FRAMES - 1 down to its negative: [1, 2 MAX_FRAMES - 1, width]."""
    distances = torch.arange(MAX_FRAMES - 1, -MAX_FRAMES, -1.0)[:, None]
    angles = distances * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[None]


class CtcDecoder(nn.Module):
    """`encoder_output` [B, width, T'] to `logprobs` [B, T', TOKENS + 1]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.decoder_layers = nn.Conv1d(size.width, TOKENS + 1, 1)

    def forward(self, encoder_output: Tensor) -> Tensor:
        logits: Tensor = self.decoder_layers(encoder_output)
        return logits.transpose(1, 2).log_softmax(dim=-1)


class Prediction(nn.Module):
    """`targets` [B, U] and the state of two LSTM layers to `outputs` [B, pred, U] and the state after them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS + 1, size.pred, padding_idx=TOKENS)
        self.lstm = nn.LSTM(size.pred, size.pred, num_layers=2)

    def forward(self, targets: Tensor, target_length: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        g, (h, c) = self.lstm(self.embed(targets.long()).transpose(0, 1), (h, c))
        return g.permute(1, 2, 0), target_length + 0, h, c


@dataclass(frozen=True, slots=True)
class Networks:
    """All that a replica is made of. The post nets map [B, U, pred] to logits [B, U, 257], one for each language."""

    encoder: Encoder
    ctc_decoder: CtcDecoder
    prediction: Prediction
    joint_enc: nn.Linear
    joint_pred: nn.Linear
    joint_pre_net: nn.Module
    joint_post_nets: dict[str, nn.Linear]


def build(size: Size, languages: tuple[str, ...]) -> Networks:
    """Networks with random weights (seed torch before), for inference alone."""
    networks = Networks(
        Encoder(size),
        CtcDecoder(size),
        Prediction(size),
        nn.Linear(size.width, size.pred),
        nn.Linear(size.pred, size.pred),
        nn.ReLU(),
        {language: nn.Linear(size.pred, TOKENS // len(languages) + 1) for language in languages},
    )
    parts = (networks.encoder, networks.ctc_decoder, networks.prediction, networks.joint_enc, networks.joint_pred)
    for part in (*parts, *networks.joint_post_nets.values()):
        part.eval().requires_grad_(requires_grad=False)
    return networks
