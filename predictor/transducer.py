"""An encoder's output to a Hypothesis, by a transducer's prediction and joint networks: greedy RNN-T (Graves 2012).

    at each frame: say the likeliest token and ask again, knowing it; go to the next frame at a blank

What the prediction network says depends on the tokens alone, so it is asked once for each of them; and until the next
token is found, the frames ahead are joined with the same prediction, many in one call. Both change no result.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from predictor.engine import State, Transducer
from predictor.search import Hypothesis

# Frames joined at once after a token, and the most while there is none: a token comes every three frames of speech or
# so, and what was joined beyond it was in vain.
_FIRST_FRAMES = 4
_MOST_FRAMES = 32


def search(
    encoded: NDArray[np.float32],
    transducer: Transducer,
    language: str,
    allowed: Sequence[int],
    max_symbols: int = 10,
) -> Hypothesis:
    """The tokens that are likeliest one by one, at most `max_symbols` in a frame. encoded [T', D].

    `allowed[k]` is what the language's own token k is called in the vocabulary. A token ends one frame after its start:
    a transducer tells when it says a token, not how long; two of one frame share it. Confidence is the token's
    probability among the language's. Raises InferenceFailed.
    """
    found = list(_emitted(transducer.start(encoded), transducer, language, max_symbols))
    starts = np.array([frame for frame, _, _ in found], dtype=np.int64)
    tokens = np.array([token for _, token, _ in found], dtype=np.int64)
    confidences = np.array([confidence for _, _, confidence in found], dtype=np.float32)
    return Hypothesis(np.asarray(allowed, dtype=np.int64)[tokens], starts, starts + 1, confidences)


def _emitted(
    frames: NDArray[np.float32], transducer: Transducer, language: str, max_symbols: int
) -> Iterator[tuple[int, int, float]]:
    """Frame, the language's own token and confidence of all that is said."""
    token: int | None = None
    state: State | None = None
    frame = said = 0
    while frame < len(frames):
        prediction, state = transducer.predict(token, state)
        found = _next(frames, frame, prediction, transducer, language)
        if found is None:
            return
        yield found
        at, token, _ = found
        said = said + 1 if at == frame else 1
        frame = at
        if said == max_symbols:
            frame, said = at + 1, 0


def _next(
    frames: NDArray[np.float32],
    first: int,
    prediction: NDArray[np.float32],
    transducer: Transducer,
    language: str,
) -> tuple[int, int, float] | None:
    """The first token that is no blank, from frame `first` on."""
    count = _FIRST_FRAMES
    while first < len(frames):
        logits = transducer.join(frames[first : first + count], prediction, language)
        best = logits.argmax(axis=1)
        spoken = int((best != transducer.blank_id).argmax())
        token = int(best[spoken])
        if token != transducer.blank_id:
            scores = logits[spoken]
            return first + spoken, token, 1 / float(np.exp(scores - scores[token]).sum())
        first += count
        count = min(2 * count, _MOST_FRAMES)
    return None
