"""The routes of the two services before this one: POST /transcribe takes a form, POST /asr takes JSON.

/transcribe is PhoWhisper-CTC's and /asr is IndicConformer's, so that their clients need a new address and nothing else.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from predictor import errors
from predictor.errors import BadRequest, PredictorError
from predictor.hotwords import phrases
from predictor.protocol import MAX_CLIPS, Clip
from predictor.protocol.fields import as_decoding, as_hotwords, as_language, from_base64
from predictor.protocol.multipart import Form
from predictor.protocol.payload import parse_json
from predictor.transcript import Transcript

_MODEL_TYPES = ("pytorch", "onnx")  # what the old service ran; here the bundle says it
_LISTS = ("inputs", "dataframe_records")  # MLflow's names for rows

# Clients tell errors apart by these, so they never change.
_CODES: dict[type[PredictorError], str] = {
    errors.BadRequest: "INVALID_REQUEST",
    errors.Unauthenticated: "UNAUTHENTICATED",
    errors.UnknownModel: "MODEL_NOT_FOUND",
    errors.UnsupportedAudio: "UNSUPPORTED_AUDIO",
    errors.PayloadTooLarge: "PAYLOAD_TOO_LARGE",
    errors.AudioTooLong: "AUDIO_TOO_LONG",
    errors.InvalidAudio: "INVALID_AUDIO",
    errors.RateLimited: "RATE_LIMITED",
    errors.Overloaded: "OVERLOADED",
    errors.DeadlineExceeded: "DEADLINE_EXCEEDED",
    errors.ModelError: "INFERENCE_FAILED",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A /transcribe request; `model` is the name as it was sent, or empty."""

    clip: Clip
    model: str


def read_transcribe(form: Form) -> Upload:
    """The fields file, model, language, hotwords, decoding, and model_type, which is checked and ignored."""
    if (form.text("model_type") or "onnx") not in _MODEL_TYPES:
        raise BadRequest(f"model_type must be one of {', '.join(_MODEL_TYPES)}")
    hotwords = phrases(form.text("hotwords") or "")
    clip = Clip(
        form.file("file").data, as_language(form.text("language")), hotwords, as_decoding(form.text("decoding"))
    )
    return Upload(clip, form.text("model") or "")


def write_transcribe(transcript: Transcript, *, processing_seconds: float, model: str, trace_id: str) -> bytes:
    """One JSON object, under an id of its own; times are in seconds."""
    return orjson.dumps(
        {
            "id": str(uuid.uuid4()),
            "text": transcript.text,
            "duration": round(transcript.duration_seconds, 3),
            "processing_time": round(processing_seconds, 4),
            "real_time_factor": round(processing_seconds / transcript.duration_seconds, 4),
            "language": transcript.language,
            "model": model,
            "timestamp": datetime.now(UTC).isoformat(),
            "trace_id": trace_id,
        }
    )


@dataclass(frozen=True, slots=True)
class AsrAsked:
    """An /asr request: a decoding for each clip, and whether it was a list, as the answer then is."""

    clips: list[Clip]
    decodings: list[str]
    several: bool


def read_asr(body: bytes | bytearray) -> AsrAsked:
    """{"audio_base64", "lang", "decoding", "hotwords"}, all but the first optional; or a list of such objects.

    A list is bare, or under "inputs" or "dataframe_records".
    """
    value = parse_json(body)
    rows = value
    if isinstance(value, dict):
        rows = next((value[name] for name in _LISTS if name in value), value)
    several = not isinstance(rows, dict)
    items = [rows] if isinstance(rows, dict) else rows
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_CLIPS:
        raise BadRequest(f"the body must be an object with audio_base64, or a list of 1 to {MAX_CLIPS} of them")
    fields = [f"[{index}]." if several else "" for index in range(len(items))]
    read = [_asr_item(item, field) for item, field in zip(items, fields, strict=True)]
    return AsrAsked([clip for clip, _ in read], [decoding for _, decoding in read], several)


def _asr_item(item: object, field: str) -> tuple[Clip, str]:
    if not isinstance(item, dict):
        raise BadRequest(f"{field}audio_base64 is missing: every recording is an object that has it")
    decoding = as_decoding(item.get("decoding"))
    data = from_base64(item.get("audio_base64"), f"{field}audio_base64")
    clip = Clip(data, as_language(item.get("lang")), as_hotwords(item.get("hotwords")), decoding)
    return clip, item.get("decoding") or "ctc"


def write_asr(asked: AsrAsked, transcripts: Sequence[Transcript]) -> bytes:
    """{"transcription", "lang", "decoding", "duration_seconds", "words"}, or a list of them where a list came."""
    answers = [
        {
            "transcription": transcript.text,
            "lang": transcript.language,
            "decoding": decoding,
            "duration_seconds": transcript.duration_seconds,
            "words": transcript.words,
        }
        for transcript, decoding in zip(transcripts, asked.decodings, strict=True)
    ]
    return orjson.dumps(answers if asked.several else answers[0])


def asr_error(error: PredictorError | None, message: str) -> dict[str, Any]:
    """{"error_code", "message"}; without an error of ours, the framework has refused the request."""
    known = (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    return {"error_code": next(known, _CODES[BadRequest]), "message": message}
