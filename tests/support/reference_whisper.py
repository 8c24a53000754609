"""PhoWhisper-CTC as its publisher's description has it, slowly and in plain words: a checkpoint and audio to text.

Nothing of Vani is used. Features are transformers' own; the encoder is written out; every logit of every frame is made.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import WhisperFeatureExtractor

RATE_HZ = 16_000
BLANK = 50_257  # <|endoftext|>, the pad token
JUNK = (0, 105)


class Reference:
    """A trained network: `state` by the published names, the spelling of each id by `vocab.json`."""

    def __init__(self, directory: Path, state: dict[str, torch.Tensor]) -> None:
        self.state = {name.replace("ctc_head.layers.", "ctc_head."): value.float() for name, value in state.items()}
        ids = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
        self.spelling = {number: token for token, number in ids.items()}
        self.extractor = WhisperFeatureExtractor(feature_size=self.state["encoder.conv1.weight"].shape[1])

    def transcribe(self, samples: np.ndarray, *, padded: bool) -> str:
        """`padded`: with silence up to 30 s, as in training; else as long as it is."""
        return self.text(self.best(self.features(samples, padded=padded)))

    def features(self, samples: np.ndarray, *, padded: bool) -> np.ndarray:
        """[mel, T]: 3,000 frames where `padded`."""
        padding = "max_length" if padded else "do_not_pad"
        found = self.extractor(samples, sampling_rate=RATE_HZ, padding=padding, return_tensors="np")
        return found["input_features"][0]

    def best(self, features: np.ndarray) -> list[int]:
        """The likeliest class of each frame."""
        return self.log_probs(features).argmax(axis=1).tolist()

    @torch.inference_mode()
    def log_probs(self, features: np.ndarray) -> np.ndarray:
        """[T', 50,258]."""
        x = self.encode(torch.from_numpy(features))
        x = functional.gelu(self._linear(x, "ctc_head.0"))
        return self._linear(self._norm(x, "ctc_head.2"), "ctc_head.3").log_softmax(dim=-1).numpy()

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """transformers' WhisperEncoder on [mel, T]: [T', width]."""
        s = self.state
        x = functional.gelu(functional.conv1d(features, s["encoder.conv1.weight"], s["encoder.conv1.bias"], padding=1))
        x = functional.conv1d(x, s["encoder.conv2.weight"], s["encoder.conv2.bias"], padding=1, stride=2)
        x = functional.gelu(x).T
        x = x + s["encoder.embed_positions.weight"][: len(x)]
        number = 0
        while f"encoder.layers.{number}.fc1.weight" in s:
            layer = f"encoder.layers.{number}."
            x = x + self._attention(self._norm(x, layer + "self_attn_layer_norm"), layer + "self_attn.")
            wide = functional.gelu(self._linear(self._norm(x, layer + "final_layer_norm"), layer + "fc1"))
            x = x + self._linear(wide, layer + "fc2")
            number += 1
        return self._norm(x, "encoder.layer_norm")

    def _attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        heads = []
        for first in range(0, x.shape[1], 64):
            query, key, value = (
                self._linear(x, name + part)[:, first : first + 64] for part in ("q_proj", "k_proj", "v_proj")
            )
            heads.append(torch.softmax(query @ key.T / math.sqrt(64), dim=-1) @ value)
        return self._linear(torch.cat(heads, dim=1), name + "out_proj")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        bias = self.state.get(name + ".bias")  # keys have none
        product = x @ self.state[name + ".weight"].T
        return product if bias is None else product + bias

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.state[name + ".weight"], self.state[name + ".bias"], 1e-5)

    def text(self, path: list[int]) -> str:
        """Repeats are one, blanks are none, the junk at the start is left out, what is left is bytes."""
        tokens, before = [], None
        for token in path:
            if token not in (before, BLANK):
                tokens.append(token)
            before = token
        for junk in JUNK:
            if tokens and tokens[0] == junk:
                tokens = tokens[1:]
        spelt = b"".join(self._bytes(self.spelling[token]) for token in tokens)
        return " ".join(spelt.decode("utf-8", errors="replace").split())

    def _bytes(self, token: str) -> bytes:
        """GPT-2's way to write bytes (`bytes_to_unicode` in its encoder.py)."""
        kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        moved = [byte for byte in range(256) if byte not in kept]
        table = {chr(byte): byte for byte in kept} | {chr(256 + place): byte for place, byte in enumerate(moved)}
        return bytes(table[character] for character in token)
