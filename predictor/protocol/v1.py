"""KServe's V1 over HTTP: JSON instances, or the file itself as the body."""

from collections.abc import Sequence

import orjson

from predictor.errors import BadRequest
from predictor.protocol import MAX_CLIPS, Clip
from predictor.protocol.fields import as_decoding, as_hotwords, as_language, from_base64
from predictor.protocol.payload import parse_json
from predictor.transcript import Transcript


def read(body: bytes | bytearray, content_type: str) -> list[Clip]:
    """Clips from {"instances": [...]}; of any content type but JSON, the body is one file.

    An instance is base64 text or {"audio": base64, "language": code, "hotwords": text, "decoding": name}. Its audio may
    also be {"b64": base64}, TensorFlow Serving's way to write bytes.
    """
    if not is_json(content_type):
        return [Clip(body)]
    value = parse_json(body)
    instances = value.get("instances") if isinstance(value, dict) else None
    if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_CLIPS:
        raise BadRequest(f"instances must be a list of 1 to {MAX_CLIPS} recordings")
    return [_read_instance(instance, f"instances[{index}]") for index, instance in enumerate(instances)]


def is_json(content_type: str) -> bool:
    """Whether a Content-Type says JSON; application/json with any parameters, or a type that is written in it."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _read_instance(instance: object, field: str) -> Clip:
    if not isinstance(instance, dict):
        return Clip(from_base64(instance, field))
    audio = instance.get("audio", instance)
    if isinstance(audio, dict):
        audio = audio.get("b64")
    return Clip(
        from_base64(audio, field),
        as_language(instance.get("language")),
        as_hotwords(instance.get("hotwords")),
        as_decoding(instance.get("decoding")),
    )


def write(transcripts: Sequence[Transcript]) -> bytes:
    """{"predictions": [...]}, a Transcript each."""
    return orjson.dumps({"predictions": transcripts})
