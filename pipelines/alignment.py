"""When tokens were said, by forced alignment: the reference that word times are checked against.

torchaudio's `forced_align` where it loads, else the same dynamic programme in NumPy. torchaudio's wheels are built for
CUDA's torch and fail on others with an OSError, after the import was found.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Permanent

LogProbs = NDArray[np.float32]
Align = Callable[[LogProbs, Sequence[int], int], NDArray[np.int64]]


def aligner() -> tuple[str, Align]:
    """The name of what is there, and the function: (log_probs [T, K], tokens, blank) -> the token of each frame [T]."""
    try:
        import torchaudio.functional  # noqa: F401  (whether it loads)
    except (ImportError, OSError):
        return "NumPy", viterbi
    return "torchaudio", by_torchaudio


def by_torchaudio(log_probs: LogProbs, tokens: Sequence[int], blank: int) -> NDArray[np.int64]:
    """As `viterbi`."""
    import torch
    from torchaudio.functional import forced_align

    _check(log_probs, tokens)
    path, _ = forced_align(
        torch.from_numpy(log_probs)[None], torch.tensor([list(tokens)], dtype=torch.int32), blank=blank
    )
    return np.asarray(path[0].numpy(), dtype=np.int64)


def viterbi(log_probs: LogProbs, tokens: Sequence[int], blank: int) -> NDArray[np.int64]:
    """The likeliest path [T] through log_probs [T, K] that collapses to `tokens` (Graves et al. 2006, by maximum).

    Raises Permanent where there are fewer frames than the tokens need.
    """
    _check(log_probs, tokens)
    states = np.full(2 * len(tokens) + 1, blank, np.int64)  # blanks before, between and after
    states[1::2] = tokens
    skips = np.zeros(len(states), bool)  # a blank between different tokens may be left out
    skips[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states]
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    came_from = np.zeros((len(log_probs), len(states)), np.int8)  # how many states back
    for frame in range(1, len(log_probs)):
        stayed = score
        moved = np.concatenate([[-np.inf], score[:-1]])
        skipped = np.where(skips, np.concatenate([[-np.inf, -np.inf], score[:-2]])[: len(score)], -np.inf)
        ways = np.stack([stayed, moved, skipped])
        came_from[frame] = ways.argmax(axis=0)
        score = ways.max(axis=0) + emitted[frame]
    state = len(states) - 1 if len(states) == 1 or score[-1] >= score[-2] else len(states) - 2
    path = np.empty(len(log_probs), np.int64)
    for frame in range(len(log_probs) - 1, -1, -1):
        path[frame] = states[state]
        state -= int(came_from[frame, state])
    return path


def _check(log_probs: LogProbs, tokens: Sequence[int]) -> None:
    needed = len(tokens) + sum(one == other for one, other in itertools.pairwise(tokens))
    if len(log_probs) < max(needed, 1):
        raise Permanent(f"{len(tokens)} tokens need {max(needed, 1)} frames, and there are {len(log_probs)}")
