"""Wire formats to Clips, and Transcripts to wire formats. Nothing here knows a web framework, a client or gRPC.

    payload     a body -> JSON, without its audio going through the parser
    fields      one value -> a file from base64, a language, hotwords
    tensors     V2 tensors -> Clips, Transcripts -> V2 tensors; REST and gRPC share them
    v2          POST /v2/models/{name}/infer: JSON, and the binary tensor extension
    v1          POST /v1/models/{name}:predict: instances, or the file itself
    multipart   multipart/form-data -> Form
    openai      POST /v1/audio/transcriptions: Form -> Asked, answers, events and errors in OpenAI's shapes
    plain       POST /transcribe and POST /asr, as the two services before this one had them

What arrives is bytes, and values of any shape that a client may invent, so every access is checked and every refusal is
a BadRequest that names the field. Every `read` and `write` may run in a thread beside the event loop: none holds the
interpreter's lock for long, and none copies a recording that came as bytes.
"""

from dataclasses import dataclass

from predictor.audio import Pcm
from predictor.search import Decoding

__all__ = ["MAX_CLIPS", "Clip", "Pcm"]

MAX_CLIPS = 64  # in one request; more belong into more requests, where they can be scheduled


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording to transcribe: a file's bytes or samples, and what the caller knows about it.

    A memoryview is a part of the request's body and keeps all of it in memory.
    """

    data: bytes | bytearray | memoryview | Pcm
    language: str | None = None
    hotwords: tuple[str, ...] = ()
    decoding: Decoding = "ctc"
