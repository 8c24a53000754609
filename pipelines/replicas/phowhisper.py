"""The published checkpoint of PhoWhisper-CTC, in form to the byte, with a small random network inside.

    best-val_wer=0.3986.ckpt   torch.save's zip: "state_dict", and pickled into it a WhisperProcessor and AdamW's state
    config.json   preprocessor_config.json   the tokenizer's files (`whisper_tokenizer`)

A random network says the same thing all the time. The head of this one is adjusted until random audio makes it say
something: tokens, blanks, repeats, and at the start the two junk tokens that the published training left in it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.replicas import whisper_tokenizer
from predictor.bundle import FrontEnd
from predictor.engine.whisper import HEAD_WIDTH, WhisperCtc
from predictor.features import SAMPLE_RATE_HZ, extract
from predictor.spelling import byte_alphabet

CHECKPOINT = "best-val_wer=0.3986.ckpt"
JUNK = (0, 105)  # ids: "!" and the byte 0xAC
POSITIONS = 1_500
Head = Literal["ctc_head.N", "ctc_head.layers.N"]
_JUNK_FRAMES = (0, 1)
_CLEAR = 10.0  # nats
_SPOKEN = 24  # tokens that the network has a word for
_PROCESSOR = "transformers.models.whisper.processing_whisper"


def write(  # noqa: PLR0913  (a size has as many numbers)
    directory: Path,
    *,
    layers: int = 2,
    width: int = HEAD_WIDTH,
    heads: int = 1,
    mel: int = 80,
    seed: int = 0,
    head: Head = "ctc_head.N",
    junk: bool = True,
) -> Path:
    """Write the files into `directory`, which is made, and return the checkpoint's path.

    PhoWhisper-tiny has 4 layers, width 384 and 6 heads. Raises ValueError where the heads are not 64 wide.
    """
    if width != heads * HEAD_WIDTH:
        raise ValueError(f"{heads} heads of {HEAD_WIDTH} do not make a width of {width}")
    directory.mkdir(parents=True, exist_ok=True)
    tokens = whisper_tokenizer.write(directory)
    network = build(tokens, layers=layers, width=width, mel=mel, seed=seed, junk=junk)
    state = network.state_dict()
    if head == "ctc_head.layers.N":
        state = type(state)((name.replace("ctc_head.", "ctc_head.layers."), value) for name, value in state.items())
    size = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads, "num_mel_bins": mel}
    (directory / "config.json").write_text(json.dumps({"model_type": "whisper", **size}))
    front_end = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mel, "n_fft": 400}
    (directory / "preprocessor_config.json").write_text(json.dumps(front_end))
    moments = {"step": torch.tensor(64.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.ones(3)}
    with _processor() as processor:
        content = {
            "epoch": 63,
            "pytorch-lightning_version": "2.5.1",
            "state_dict": state,
            "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
            "hyper_parameters": {"blank": len(tokens) - 1},
            "processor": processor,
        }
        torch.save(content, directory / CHECKPOINT)
    return directory / CHECKPOINT


def build(  # noqa: PLR0913  (as above)
    tokens: list[str], *, layers: int, width: int, mel: int, seed: int = 0, junk: bool = True
) -> WhisperCtc:
    """The network of these sizes, with a row for each token and the last one the blank."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = WhisperCtc(mel, width, layers, 4 * width, POSITIONS, len(tokens)).eval()
        network.requires_grad_(requires_grad=False)
        nn.init.normal_(network.encoder.conv1.weight, std=0.3)  # so that frames differ
        positions = network.encoder.embed_positions.weight
        positions.copy_(0.3 * _sinusoids(POSITIONS, width))  # less than Whisper's, so that what is heard counts
        marks = torch.randn(len(JUNK), width)
        if junk:
            positions[list(_JUNK_FRAMES)] += 8 * marks
        _enliven(network, _spoken(tokens), mel, junk=junk)
    return network


def _spoken(tokens: list[str]) -> list[int]:
    """Ids of whole words, of parts of words, and of single bytes, which make characters only in the right company."""
    number = {token: i for i, token in enumerate(tokens)}
    alphabet = {byte: character for character, byte in byte_alphabet().items()}
    words = (word for pair in whisper_tokenizer.WORDS[: _SPOKEN // 2] for word in (" " + pair, pair))
    whole = [number["".join(alphabet[byte] for byte in word.encode())] for word in words]
    return [*whole[: _SPOKEN - 4], number["a"], number["Ġ"], number["á"], number["º"]]


def _enliven(network: WhisperCtc, spoken: list[int], mel: int, *, junk: bool) -> None:
    """Set the head's rows: each spoken token likes a direction of its own, the blank is as likely as all of them."""
    front_end = FrontEnd("whisper-log-mel", mel)
    heard = [network(torch.from_numpy(extract(noise(3.0, seed), front_end))[None])[0] for seed in range(4)]
    hidden = torch.cat([frames[_JUNK_FRAMES[-1] + 1 :] for frames in heard])
    rows, biases = network.classifier.weight, network.classifier.bias
    nn.init.normal_(rows, std=0.02)
    biases.fill_(-6.0)
    directions = torch.randn(len(spoken), hidden.shape[1])
    scores = hidden @ directions.T
    directions *= 4 / scores.std(dim=0)[:, None]
    rows[spoken], biases[spoken] = directions, -(hidden.mean(dim=0) @ directions.T)
    best = (hidden @ directions.T + biases[spoken]).max(dim=1).values
    rows[-1], biases[-1] = 0.0, best.median()
    for token, frame in zip(JUNK, _JUNK_FRAMES, strict=True) if junk else ():
        row = torch.stack([frames[frame] for frames in heard]).mean(dim=0) - hidden.mean(dim=0)
        above = (rows[spoken] @ (row + hidden.mean(dim=0)) + biases[spoken]).max() - best.median() + _CLEAR
        # In its own frame it is `_CLEAR` above all; in those that are less than 70 % alike it is below the blank.
        rows[token] = row * (above / 0.3) / (row @ row)
        biases[token] = best.median() - (above * 0.7 / 0.3) - rows[token] @ hidden.mean(dim=0)


def noise(seconds: float, seed: int) -> NDArray[np.float32]:
    """Something to hear: noise whose colour and loudness change about ten times a second, samples [N] at 16 kHz."""
    generator = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE_HZ)
    knots = np.linspace(0, count, max(2, round(10 * seconds)))
    loudness, pitch = (np.interp(np.arange(count), knots, generator.normal(size=len(knots))) for _ in range(2))
    phase = np.cumsum(2 * np.pi * 300 * 2**pitch / SAMPLE_RATE_HZ)
    samples = np.exp(loudness - 2) * (np.sin(phase) + np.sin(3 * phase) + generator.normal(size=count))
    return np.clip(0.3 * samples, -1, 1).astype(np.float32)


def _sinusoids(positions: int, width: int) -> Tensor:
    """Whisper's position embeddings (`sinusoids` in openai/whisper's model.py)."""
    steps = torch.exp(-np.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@contextmanager
def _processor() -> Iterator[object]:
    """An object whose pickle says that it is transformers' WhisperProcessor, whether or not transformers is here."""
    names = [_PROCESSOR.rsplit(".", count)[0] for count in range(_PROCESSOR.count(".") + 1)]
    before = {name: sys.modules.get(name) for name in names}
    kind = type("WhisperProcessor", (), {"__module__": _PROCESSOR})
    sys.modules |= {name: ModuleType(name) for name in names}
    sys.modules[_PROCESSOR].__dict__["WhisperProcessor"] = kind
    processor = kind()
    processor.__dict__.update(feature_extractor={"mel_filters": np.zeros((2, 3))}, tokenizer={"pad_token": "?"})
    try:
        yield processor
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
