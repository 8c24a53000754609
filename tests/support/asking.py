"""Requests as clients write them, about clips of the demo's test set."""

import base64
import json
import struct
from functools import cache

import httpx
import numpy as np
from numpy.typing import NDArray

from demo import testset
from predictor.audio import decode

MODEL = "vani-demo"
INFER = f"/v2/models/{MODEL}/infer"
CLIPS = {clip.language: clip for clip in reversed(testset.read()) if clip.kind == "natural"}
RATE_HZ = 16_000


def audio(language: str) -> bytes:
    """The clip of that language, as Ogg Opus."""
    return (testset.DIRECTORY / CLIPS[language].audio).read_bytes()


@cache
def pcm(language: str) -> NDArray[np.int16]:
    """The clip as 16-bit samples [N] at 16 kHz: what every way of sending audio can carry without a loss."""
    return np.rint(decode(audio(language), 60.0).samples * 32767).astype(np.int16)


def wav(samples: NDArray[np.int16]) -> bytes:
    """A file of these samples [N] at 16 kHz."""
    data = samples.astype("<i2").tobytes()
    head = struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + len(data), b"WAVEfmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    return head + struct.pack("<4sI", b"data", len(data)) + data


@cache
def long_file(seconds: float) -> bytes:
    """A file that is at least so long, made of the clip over and over."""
    samples = pcm("vi")
    return wav(np.tile(samples, int(seconds * RATE_HZ // len(samples) + 1)))


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def v2(*files: bytes, language: str | list[str] | None = None, **rest) -> dict:
    """A V2 request in JSON."""
    inputs = [{"name": "audio", "datatype": "BYTES", "shape": [len(files)], "data": [text64(file) for file in files]}]
    if language is not None:
        codes = [language] if isinstance(language, str) else language
        inputs.append({"name": "language", "datatype": "BYTES", "shape": [len(codes)], "data": codes})
    return {"inputs": inputs, **rest}


def binary(file: bytes, **head) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a V2 request in the binary tensor extension."""
    tensor = struct.pack("<I", len(file)) + file
    shape = {"name": "audio", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    encoded = json.dumps({"inputs": [shape], **head}).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(encoded)),
        "Content-Type": "application/octet-stream",
    }
    return encoded + tensor, headers


def outputs(response: httpx.Response) -> dict[str, list]:
    """A V2 response's tensors by name."""
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}
