"""What the two sides of a live dictation say: a client's text messages are read, events are written as JSON."""

import json
from dataclasses import asdict, dataclass

import orjson

from predictor.errors import BadRequest
from predictor.transcript import Word

MAX_MESSAGE_CHARACTERS = 4_096  # a key is a tenth of that


@dataclass(frozen=True, slots=True)
class Start:
    """The client begins, with its API key where it has one: a browser cannot send headers with a WebSocket."""

    key: str | None


@dataclass(frozen=True, slots=True)
class End:
    """The client will send no more audio; what it has sent is still made final."""


@dataclass(frozen=True, slots=True)
class Partial:
    """What is heard since the last Final, from `start_seconds` on. Replaced by the next Partial or Final."""

    text: str
    start_seconds: float

    def to_json(self) -> str:
        return _to_json("partial", asdict(self))


@dataclass(frozen=True, slots=True)
class Final:
    """Words, at least one, that will not change, from the start of the first to the end of the last."""

    text: str
    words: tuple[Word, ...]
    start_seconds: float
    end_seconds: float
    language: str | None

    def to_json(self) -> str:
        return _to_json("final", asdict(self))


@dataclass(frozen=True, slots=True)
class Done:
    """Everything that was sent is in the Finals before this."""

    duration_seconds: float

    def to_json(self) -> str:
        return _to_json("done", asdict(self))


Event = Partial | Final | Done


def _to_json(kind: str, fields: dict[str, object]) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)


def read_message(text: str) -> Start | End:
    """A client's text message: {"type": "start", "key": ...}, the key being optional, or {"type": "end"}.

    Raises BadRequest for all else, other fields included: an option that is not known must not seem to work.
    """
    if len(text) > MAX_MESSAGE_CHARACTERS:
        raise BadRequest(f"a message has {len(text)} characters, and {MAX_MESSAGE_CHARACTERS} is the limit")
    try:
        message = orjson.loads(text)
    except ValueError as error:
        raise BadRequest("the message is not JSON") from error
    match message:
        case {"type": "start", "key": str() | None as key, **rest} if not rest:
            return Start(key)
        case {"type": "start", **rest} if not rest:
            return Start(None)
        case {"type": "end", **rest} if not rest:
            return End()
    raise BadRequest("""a message must be {"type": "start", "key": "..."} or {"type": "end"}, with no other field""")
