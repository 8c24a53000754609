"""Batch to Emissions: the one place where networks run, and what they tell the scheduler about themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from predictor.features import Batch


@dataclass(frozen=True, slots=True)
class Emission:
    """What the network heard in one utterance of T' frames.

    `log_probs` float32 [T', K] are log-probabilities: of every token where `tokens` is None, else of the K likeliest
    `tokens` int32 [T', K] of each frame, the likeliest first, within the probability of all. `encoded` float32 [T', D]
    is the encoder's own output, where a transducer searches in it.
    """

    log_probs: NDArray[np.float32]
    tokens: NDArray[np.int32] | None = None
    encoded: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How an engine likes its work: `streams` calls side by side, each of up to `max_rows` utterances.

    A batch of several rows costs its padding too: rows times the longest. It is kept within `max_padded_frames`, of
    which at most `max_padding_share` may be padding, so rows of about one length come together. The first row waits
    `wait_seconds` for company at the most. The defaults are a CPU's: one utterance, at once (docs/decisions/0003).
    """

    streams: int = 1
    max_rows: int = 1
    max_padded_frames: int = 0
    max_padding_share: float = 0.0
    wait_seconds: float = 0.0

    def cost(self, lengths: Sequence[int]) -> int:
        """The frames that a batch of these lengths keeps the engine busy with."""
        return len(lengths) * max(lengths)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether utterances of these lengths may share a call. One alone always may."""
        if len(lengths) == 1:
            return True
        cost = self.cost(lengths)
        padding = cost - sum(lengths)
        return (
            len(lengths) <= self.max_rows
            and cost <= self.max_padded_frames
            and padding <= self.max_padding_share * cost
        )


class Engine(Protocol):
    """A network, loaded. `infer` may be called from several threads, and raises InferenceFailed alone.

    It gives an Emission for each row, which does not depend on the rows beside it.
    """

    @property
    def rule(self) -> BatchRule: ...

    def infer(self, batch: Batch) -> list[Emission]: ...


State = tuple[NDArray[np.float32], ...]


class Transducer(Protocol):
    """The prediction and joint networks of an RNN-T, for the search of `predictor.transducer`; for any thread.

    Tokens are a language's own: `blank_id` and what is below it. Each raises InferenceFailed alone.
    """

    blank_id: int

    def start(self, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        """An encoder's output [T', D] as the joint network takes it, [T', J]."""

    def predict(self, token: int | None, state: State | None) -> tuple[NDArray[np.float32], State]:
        """The prediction [J] after one more token (None: at the start), and the state that it leaves."""

    def join(self, frames: NDArray[np.float32], prediction: NDArray[np.float32], language: str) -> NDArray[np.float32]:
        """Logits [n, blank_id + 1] of frames [n, J] with one prediction [J]."""
