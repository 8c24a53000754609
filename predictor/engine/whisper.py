"""Whisper's encoder with a CTC head, as a PyTorch module: what a PhoWhisper-CTC bundle's weights are the weights of.

    features [B, mel, T] -> two convolutions, the second of stride 2 -> transformer -> head -> hidden [B, T', width]

Parameters have the names of the published checkpoints: transformers' for the encoder, `ctc_head.{0,2,3}` for the head.
The last linear layer, one row for each token, is left to the caller (`classifier`): 50,258 logits a frame are 301 MB in
30 s, and whoever wants the best of them takes them in blocks. The conversion is checked against this module, and the
PyTorch engine runs it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 64  # of one attention head, in every Whisper from tiny to large
_LAST = "ctc_head.3.weight"


def frames(lengths: Tensor) -> Tensor:
    """How many frames T' come of T features (the second convolution has stride 2)."""
    return (lengths + 1) // 2


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        batch, count, width = hidden.shape
        query, key, value = (
            projection(hidden).view(batch, count, -1, HEAD_WIDTH).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        heard = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return torch.as_tensor(self.out_proj(heard.transpose(1, 2).reshape(batch, count, width)))


class _Layer(nn.Module):
    def __init__(self, width: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, feed_forward)
        self.fc2 = nn.Linear(feed_forward, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), mask)
        return hidden + torch.as_tensor(self.fc2(functional.gelu(self.fc1(self.final_layer_norm(hidden)))))


class Encoder(nn.Module):
    """transformers' `WhisperEncoder`, but for any length up to its positions, and with padding masked."""

    def __init__(self, mel_bins: int, width: int, layers: int, feed_forward: int, positions: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(_Layer(width, feed_forward) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As `WhisperCtc.forward`, without the head."""
        hidden = functional.gelu(self.conv1(features))
        mask = None
        if lengths is not None:
            # The next convolution must see beyond a row's end the zeros that it sees where the row is alone.
            hidden = hidden * _within(lengths, hidden.shape[2])[:, None]
        hidden = functional.gelu(self.conv2(hidden)).transpose(1, 2)
        if lengths is not None:
            mask = _within(frames(lengths), hidden.shape[1])[:, None, None]
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return torch.as_tensor(self.layer_norm(hidden))


class WhisperCtc(nn.Module):
    """Encoder and head. `heads` and every other size follow from the tensors (`from_state`)."""

    def __init__(  # noqa: PLR0913, PLR0917  (the sizes of a network)
        self, mel_bins: int, width: int, layers: int, feed_forward: int, positions: int, tokens: int
    ) -> None:
        super().__init__()
        self.encoder = Encoder(mel_bins, width, layers, feed_forward, positions)
        self.ctc_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, tokens))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B, mel, T] to hidden [B, T', width], which `classifier` takes; T' = (T + 1) // 2.

        `lengths` int64 [B] are the rows' own T; beyond them features are zero and what comes out has no meaning, and no
        row depends on another. None, which is faster, says that every row is as long as T. T' is at most the number of
        positions, 1,500 (30 s).
        """
        return torch.as_tensor(self.ctc_head[:3](self.encoder(features, lengths)))

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: hidden [..., width] to the logits of all tokens [..., tokens]."""
        last = self.ctc_head[3]
        assert isinstance(last, nn.Linear)
        return last


def from_state(state: Mapping[str, Tensor]) -> WhisperCtc:
    """The module that these tensors, named as the checkpoints', are of: in evaluation mode and with their dtype.

    Raises KeyError or RuntimeError, as `load_state_dict` does, where they are of no such network.
    """
    width, mel_bins, _ = state["encoder.conv1.weight"].shape
    layers = sum(name.endswith(".fc1.weight") for name in state)
    positions = state["encoder.embed_positions.weight"].shape[0]
    with torch.device("meta"):
        network = WhisperCtc(
            mel_bins, width, layers, state["encoder.layers.0.fc1.weight"].shape[0], positions, state[_LAST].shape[0]
        )
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _within(lengths: Tensor, size: int) -> Tensor:
    """Bool [B, size]: which positions are a row's own."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
