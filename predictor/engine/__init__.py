"""Batch to Emissions: the one place where a network runs, and what it tells the scheduler about itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from predictor.features import Batch


@dataclass(frozen=True, slots=True)
class Emissions:
    """Log-probabilities float32 [B, T', tokens] of which row b is valid for its first `lengths[b]` frames."""

    log_probs: NDArray[np.float32]
    lengths: NDArray[np.int64]


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

    A row's emissions do not depend on the rows beside it.
    """

    @property
    def rule(self) -> BatchRule: ...

    def infer(self, batch: Batch) -> Emissions: ...
