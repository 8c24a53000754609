"""What can go wrong between audio and text, and whose fault it is.

    PredictorError
    ├── BadRequest        the request is not one of ours             caller
    ├── UnsupportedAudio  the bytes are no audio format we know      caller
    ├── AudioTooLong      longer than the limit                      caller
    ├── InvalidAudio      a known format, but empty or broken        caller
    ├── Overloaded        the queue is full                          nobody: try again
    └── ModelError                                                   operator
        ├── InvalidBundle    at start: the process does not come up
        └── InferenceFailed  while serving

Every leaf takes facts and builds its own sentence: what was wrong, the value, the limit. Sentences never hold
paths, library names, text or audio, because they are sent to callers. Which HTTP status answers which error
is known to `predictor.server` alone.
"""

from collections.abc import Iterable


class PredictorError(Exception):
    """The root: everything that this package raises on purpose."""


class BadRequest(PredictorError):
    """The payload does not follow the protocol; `problem` says which field, what was found, what was expected."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class UnsupportedAudio(PredictorError):
    """The bytes are not in an audio format that can be read; `found` describes what they look like."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the audio format is not supported: {found}; send WAV, FLAC, OGG (Vorbis, Opus), MP3, WebM, M4A or AMR"
        )


class AudioTooLong(PredictorError):
    """The audio is, or decodes to, more than `limit_seconds`."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        super().__init__(f"the audio is longer than the limit of {limit_seconds:g} seconds")


class InvalidAudio(PredictorError):
    """The format is known but the content cannot be used; `problem` says why."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the audio cannot be used: {problem}")


class Overloaded(PredictorError):
    """No more work is accepted for now; the caller may try again after `retry_after_seconds`."""

    def __init__(self, pending: int, limit: int, retry_after_seconds: int) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            f"{pending} requests are waiting and the limit is {limit}; try again in {retry_after_seconds} s"
        )


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
