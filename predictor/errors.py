"""What can go wrong between audio and text, and whose fault it is.

    PredictorError
    ├── BadRequest        the request is not one of ours             caller
    ├── Unauthenticated   no key, or one that is not known           caller
    ├── UnknownModel      no such model or version here              caller
    ├── UnsupportedAudio  the bytes are no audio format we know      caller
    ├── PayloadTooLarge   more bytes than the limit                  caller
    ├── AudioTooLong      longer than the limit                      caller
    ├── InvalidAudio      a known format, but empty or broken        caller
    ├── RateLimited       more audio than the caller's share         caller: try again later
    ├── Overloaded        the queue is full                          nobody: try again
    ├── DeadlineExceeded  not done within the caller's time          nobody: try again
    └── ModelError                                                   operator
        ├── InvalidBundle    at start the process does not come up; later the bundle is not loaded
        └── InferenceFailed  while serving

Every leaf takes facts and builds its own sentence: what was wrong, the value, the limit. Sentences never hold
paths, library names, text or audio, because they are sent to callers. Which HTTP status answers which error
is known to `predictor.answers` alone.
"""

from collections.abc import Iterable


class PredictorError(Exception):
    """The root: everything that this package raises on purpose."""


class BadRequest(PredictorError):
    """The payload does not follow the protocol; `problem` says which field, what was found, what was expected."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class Unauthenticated(PredictorError):
    """No API key came with the request, or none that is known."""

    def __init__(self, *, given: bool) -> None:
        super().__init__(
            "the API key is not valid" if given else "an API key is needed: send it as 'Authorization: Bearer KEY'"
        )


class UnknownModel(PredictorError):
    """No such model, or not in that version; `served` lists what there is."""

    def __init__(self, asked: str, served: Iterable[str]) -> None:
        super().__init__(f"model {asked[:60]!r} is not served here; {', '.join(served) or 'none'} is")


class UnsupportedAudio(PredictorError):
    """The bytes are not in an audio format that can be read; `found` describes what they look like."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the audio format is not supported: {found}; send WAV, FLAC, OGG (Vorbis, Opus), MP3, WebM, M4A or AMR"
        )


class PayloadTooLarge(PredictorError):
    """The body has more than `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request is larger than the limit of {limit_bytes} bytes")


class AudioTooLong(PredictorError):
    """The audio is, or decodes to, more than `limit_seconds`."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        super().__init__(f"the audio is longer than the limit of {limit_seconds:g} seconds")


class InvalidAudio(PredictorError):
    """The format is known but the content cannot be used; `problem` says why."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the audio cannot be used: {problem}")


class RateLimited(PredictorError):
    """The caller has used its audio seconds of this minute."""

    def __init__(self, limit_seconds: float, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            f"this key may send {limit_seconds:g} seconds of audio a minute; try again in {retry_after_seconds} s"
        )


class Overloaded(PredictorError):
    """No more work is accepted for now; the caller may try again after `retry_after_seconds`.

    `what` is the resource that is used up, such as "requests"; `used` and `limit` are counted in it.
    """

    def __init__(self, what: str, used: float, limit: float, retry_after_seconds: int) -> None:
        self.what, self.retry_after_seconds = what, retry_after_seconds
        super().__init__(
            f"the server is busy: {used:g} {what} are waiting and the limit is {limit:g}; "
            f"try again in {retry_after_seconds} s"
        )


class DeadlineExceeded(PredictorError):
    """The transcript was not ready within the time that the caller or the server allows."""

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(f"the transcript was not ready within {timeout_seconds:g} s")


class ModelError(PredictorError):
    """The fault is on the serving side."""


class InvalidBundle(ModelError):
    """The model directory is not what its manifest says; `problems` names each difference."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("the bundle is refused: " + "; ".join(self.problems))


class InferenceFailed(ModelError):
    """Something unforeseen; the cause is in the log under the request id and is not told to the caller."""

    def __init__(self) -> None:
        super().__init__("the transcription failed for a reason that is not the caller's; see the server's log")
