"""What Triton's gRPC client makes of a server, as JSON: python triton_client.py HOST:PORT MODEL FILE.wav

A process of its own, because its protocol buffers and KServe's have the same names and cannot be in one. The file is
16-bit mono PCM at 16 kHz.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def tensor(name: str, datatype: str, array: np.ndarray) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text(client: InferenceServerClient, model: str, *inputs: InferInput, **options) -> str:
    answer = client.infer(model, list(inputs), outputs=[InferRequestedOutput("text")], **options)
    return answer.as_numpy("text")[0].decode()


def refused(client: InferenceServerClient, model: str, *inputs: InferInput, **options) -> list[str]:
    """Status and sentence."""
    try:
        text(client, model, *inputs, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["nothing was refused", ""]


def ask(client: InferenceServerClient, model: str, file: bytes) -> dict:
    samples, _ = sf.read(io.BytesIO(file), dtype="int16")
    whole = tensor("audio", "BYTES", np.array([file], object))
    pair = tensor("audio", "BYTES", np.array([file, file], object))
    half = tensor("audio", "INT16", samples[::2])
    noise = tensor("audio", "BYTES", np.array([b"hello there, this is no audio"], object))
    answer = client.infer(model, [whole, tensor("language", "BYTES", np.array([b"vi"], object))], request_id="mine")
    response = answer.get_response()
    return {
        "texts": {
            "BYTES": text(client, model, whole),
            "FP32": text(client, model, tensor("audio", "FP32", samples.astype(np.float32) / 32768)),
            "INT16": text(client, model, tensor("audio", "INT16", samples), parameters={"language": "vi"}),
            "INT16 at 8 kHz": text(client, model, half, parameters={"sample_rate": 8_000}),
            "UINT8": text(client, model, tensor("audio", "UINT8", np.frombuffer(file, np.uint8))),
            "two": [item.decode() for item in client.infer(model, [pair]).as_numpy("text")],
        },
        "whole": {
            "id": response.id,
            "version": response.model_version,
            "digest": response.parameters["bundle_digest"].string_param,
            "language": answer.as_numpy("language")[0].decode(),
            "duration_seconds": float(answer.as_numpy("duration_seconds")[0]),
            "words": json.loads(answer.as_numpy("words")[0]),
        },
        "refused": {
            "an unknown model": refused(client, "other", whole),
            "an unknown version": refused(client, model, whole, model_version="9"),
            "an unknown language": refused(client, model, whole, parameters={"language": "xx"}),
            "no audio": refused(client, model, noise),
        },
        "live": client.is_server_live(),
        "ready": client.is_server_ready() and client.is_model_ready(model),
        "inputs": [item.name for item in client.get_model_metadata(model).inputs],
        "server": client.get_server_metadata().name,
    }


if __name__ == "__main__":
    with InferenceServerClient(sys.argv[1]) as connected:
        print(json.dumps(ask(connected, sys.argv[2], Path(sys.argv[3]).read_bytes())))
