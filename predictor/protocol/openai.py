"""OpenAI's POST /v1/audio/transcriptions: a Form to what is asked, and the answers, events and errors of its API.

What the model cannot do is refused (diarisation), and what means nothing to it is ignored (temperature,
chunking_strategy). Its tokens never leave the decoder, so words stand in log probabilities where OpenAI has tokens.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from predictor import transcript as render
from predictor.errors import BadRequest
from predictor.hotwords import phrases
from predictor.protocol import Clip
from predictor.protocol.fields import as_language
from predictor.protocol.multipart import Form
from predictor.transcript import Transcript, Word

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_GRANULARITIES = ("segment", "word")
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}

# verbose_json has Whisper's English names where everything else has codes.
# fmt: off
LANGUAGE_NAMES: Mapping[str, str] = {
    "as": "assamese", "bn": "bengali", "brx": "bodo", "doi": "dogri", "en": "english", "gu": "gujarati", "hi": "hindi",
    "kn": "kannada", "kok": "konkani", "ks": "kashmiri", "mai": "maithili", "ml": "malayalam", "mni": "manipuri",
    "mr": "marathi", "ne": "nepali", "or": "odia", "pa": "punjabi", "sa": "sanskrit", "sat": "santali", "sd": "sindhi",
    "ta": "tamil", "te": "telugu", "ur": "urdu", "vi": "vietnamese",
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Asked:
    """A transcription request; `model` is the name as it was sent, or empty."""

    clip: Clip
    model: str
    response_format: str
    granularities: tuple[str, ...]
    stream: bool
    logprobs: bool


def read(form: Form) -> Asked:
    """A request, with every field that bears on the answer checked."""
    response_format = form.text("response_format") or "json"
    if response_format not in FORMATS:
        raise BadRequest(f"response_format {response_format[:40]!r} is not offered: {', '.join(FORMATS)} are")
    granularities = _granularities(form.texts("timestamp_granularities"), response_format)
    stream = _BOOLEANS.get((form.text("stream") or "").lower())
    if stream is None:
        raise BadRequest("stream must be true or false")
    if stream and response_format not in ("json", "text"):
        raise BadRequest(f"stream goes with the response_format json or text, not with {response_format}")
    include = form.texts("include")
    if any(item != "logprobs" for item in include):
        raise BadRequest("include may hold logprobs alone")
    if include and response_format != "json":
        raise BadRequest("logprobs can be included in the response_format json alone")
    _check_temperature(form.text("temperature"))
    hints = [form.text("prompt") or "", *form.texts("keywords"), form.text("hotwords") or ""]
    clip = Clip(form.file("file").data, as_language(form.text("language")), phrases("\n".join(filter(None, hints))))
    return Asked(clip, form.text("model") or "", response_format, granularities, stream, bool(include))


def _granularities(asked: Sequence[str], response_format: str) -> tuple[str, ...]:
    if any(name not in _GRANULARITIES for name in asked):
        raise BadRequest("timestamp_granularities may hold word and segment")
    if asked and response_format != "verbose_json":
        raise BadRequest("timestamp_granularities need the response_format verbose_json")
    return tuple(sorted(set(asked))) or ("segment",)


def _check_temperature(text: str | None) -> None:
    try:
        finite = math.isfinite(float(text or 0))
    except ValueError:
        finite = False
    if not finite:
        raise BadRequest("temperature must be a number")


def write(asked: Asked, transcript: Transcript) -> tuple[bytes, str]:
    """The response's body and its media type."""
    writers: dict[str, Callable[[Transcript], str]] = {
        "text": lambda t: f"{t.text}\n",
        "srt": render.to_srt,
        "vtt": render.to_vtt,
    }
    if asked.response_format in writers:
        return writers[asked.response_format](transcript).encode(), _TEXT
    if asked.response_format == "verbose_json":
        return orjson.dumps(_verbose(transcript, asked.granularities)), _JSON
    return orjson.dumps({"text": transcript.text} | _extras(asked, transcript)), _JSON


def _extras(asked: Asked, transcript: Transcript) -> dict[str, Any]:
    """What a short answer and the last event have beside the text."""
    logprobs = {"logprobs": [_logprob(word) for word in transcript.words]} if asked.logprobs else {}
    return logprobs | {"usage": _usage(transcript)}


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.duration_seconds)}


def _logprob(word: Word) -> dict[str, Any]:
    """A word in the place of a token: its log probability is the mean of its own tokens'."""
    token = f" {word.text}"
    return {"token": token, "logprob": _log(word.confidence), "bytes": list(token.encode())}


def _log(probability: float) -> float:
    return round(math.log(max(probability, 1e-4)), 4)  # confidences are rounded to four digits


def _verbose(transcript: Transcript, granularities: Sequence[str]) -> dict[str, Any]:
    language = transcript.language or ""
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": LANGUAGE_NAMES.get(language, language),
        "duration": round(transcript.duration_seconds, 3),
        "text": transcript.text,
    }
    if "segment" in granularities:
        cues = render.cues_of(transcript.words)
        answer["segments"] = [_segment(*numbered) for numbered in enumerate(cues)]
    if "word" in granularities:
        answer["words"] = [{"word": w.text, "start": w.start_seconds, "end": w.end_seconds} for w in transcript.words]
    return answer | {"usage": _usage(transcript)}


def _segment(number: int, words: Sequence[Word]) -> dict[str, Any]:
    """A subtitle's words as Whisper has a segment: its text starts with a space, and `seek` counts steps of 10 ms.

    `no_speech_prob` is what this model does not estimate; `compression_ratio` is Whisper's own measure of repetition.
    """
    text = "".join(f" {word.text}" for word in words)
    return {
        "id": number,
        "seek": round(words[0].start_seconds * 100),
        "start": words[0].start_seconds,
        "end": words[-1].end_seconds,
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(_log(word.confidence) for word in words) / len(words), 4),
        "compression_ratio": round(len(text.encode()) / len(zlib.compress(text.encode())), 4),
        "no_speech_prob": 0.0,
    }


def event(delta: str) -> bytes:
    """A server-sent event with the text that has come since the last; the deltas together are the text."""
    return _event({"type": "transcript.text.delta", "delta": delta})


def done(asked: Asked, transcript: Transcript) -> bytes:
    """The last server-sent event, with the whole text."""
    return _event({"type": "transcript.text.done", "text": transcript.text} | _extras(asked, transcript))


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def error(message: str, status: int) -> bytes:
    """OpenAI's error object for an HTTP status; after a stream has begun, `data: ` goes before it."""
    kind, code = _ERRORS.get(status, ("server_error", None) if status >= 500 else ("invalid_request_error", None))  # noqa: PLR2004
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


_ERRORS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
