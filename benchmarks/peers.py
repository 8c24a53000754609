"""The same audio through what others run, with random weights of the same shape: samples to token ids, on one thread.

transformers      the way of the project that PhoWhisper-CTC comes from: 30 s of padding, fp32, all 50,258 logits
plain_onnx        an ONNX export of that, as it is
faster_whisper    the usual way to run a Whisper on a CPU: encoder and decoder in int8, greedy

Each raises ImportError where its library is not installed.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from measuring import Samples
from roofline import Size
from torch import Tensor, nn

from predictor.engine.whisper import HEAD_WIDTH, WhisperCtc
from predictor.features import SAMPLE_RATE_HZ
from predictor.spelling import byte_alphabet

Transcribe = Callable[[Samples], object]

TOKENS_A_SECOND = 3  # that a decoder writes: fewer than Vietnamese speech has
PADDED_FRAMES = 3_000
_END = 50_257  # <|endoftext|>
_TIMESTAMPS = 1_501
_PROMPT = 3


def transformers(size: Size, made: WhisperCtc) -> Transcribe:
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder = WhisperEncoder(WhisperConfig(**_shape(size))).eval()
    encoder.load_state_dict(made.encoder.state_dict())
    extractor = WhisperFeatureExtractor(feature_size=size.mel_bins)

    @torch.inference_mode()
    def transcribe(samples: Samples) -> list[int]:
        features = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        logits = made.ctc_head(encoder(features).last_hidden_state)
        return _collapsed(logits.log_softmax(-1).argmax(-1)[0].numpy())

    return transcribe


class _Plain(nn.Module):
    def __init__(self, made: WhisperCtc) -> None:
        super().__init__()
        self.made = made

    def forward(self, features: Tensor) -> Tensor:
        return torch.as_tensor(self.made.ctc_head[3](self.made(features)))


def plain_onnx(size: Size, made: WhisperCtc, directory: Path) -> Transcribe:
    import onnxruntime
    from transformers import WhisperFeatureExtractor

    file = directory / "plain.onnx"
    example, axes = (torch.zeros(1, size.mel_bins, PADDED_FRAMES),), {"input_features": {0: "batch"}}
    names = {"input_names": ["input_features"], "output_names": ["logits"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of things that are the same in every run
        torch.onnx.export(_Plain(made), example, str(file), opset_version=17, dynamo=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    extractor = WhisperFeatureExtractor(feature_size=size.mel_bins)

    def transcribe(samples: Samples) -> list[int]:
        features = extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features
        (logits,) = session.run(["logits"], {"input_features": features})
        return _collapsed(logits[0].argmax(-1))

    return transcribe


def faster_whisper(size: Size, directory: Path) -> Transcribe:
    from ctranslate2.converters import TransformersConverter
    from faster_whisper import WhisperModel
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    published, converted = directory / "whisper", directory / "ctranslate2"
    WhisperForConditionalGeneration(WhisperConfig(**_shape(size))).save_pretrained(published)
    _write_tokenizer(published)
    TransformersConverter(str(published), copy_files=["tokenizer.json"]).convert(str(converted), quantization="int8")
    model = WhisperModel(str(converted), device="cpu", compute_type="int8", cpu_threads=1, num_workers=1)

    def transcribe(samples: Samples) -> list[int]:
        # CTranslate2 takes half of what it is told for the limit, prompt included; without an end it is reached. The
        # language makes no difference to the work.
        wanted = round(len(samples) / SAMPLE_RATE_HZ * TOKENS_A_SECOND)
        segments, _ = model.transcribe(
            samples,
            language="en",
            beam_size=1,
            best_of=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            max_new_tokens=2 * wanted + _PROMPT,
            suppress_tokens=[_END],
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
        )
        return [token for segment in segments for token in segment.tokens]

    return transcribe


def _shape(size: Size) -> dict[str, int]:
    sides = {"layers": size.layers, "attention_heads": size.width // HEAD_WIDTH, "ffn_dim": 4 * size.width}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    return {"d_model": size.width, "num_mel_bins": size.mel_bins, **both}


def _collapsed(ids: np.ndarray) -> list[int]:
    return [int(token) for token, previous in zip(ids, np.append(-1, ids), strict=False) if token != previous]


def _write_tokenizer(directory: Path) -> None:
    """A tokenizer.json of Whisper's size with made-up merges; the ids of the special tokens are Whisper's."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    languages = [f"<|{code}|>" for code in _LANGUAGE_CODES[:99]]
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    times = [f"<|{number * 0.02:.2f}|>" for number in range(_TIMESTAMPS)]
    starts = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks), *times]
    alphabet = list(byte_alphabet())
    merges = list(islice(_merges(alphabet), _END - len(alphabet)))
    vocabulary = {token: number for number, token in enumerate([*alphabet, *map("".join, merges)])}
    special = [
        {"id": _END + number, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(starts)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    content = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def _merges(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    yield from product(alphabet, alphabet)
