"""The classifier's nodes: hidden [B, T', width] to the eight likeliest tokens of each frame, and how likely they are.

All logits of 30 s would be 301 MB. They are made in blocks of tokens, and of each block stay its eight best logits and
the logarithm of its sum of exponentials. Choosing eight of 2,048 numbers costs as much as computing them in int8, so
first the largest of each 32 neighbours is taken: the eight best are in the eight groups with the largest ones.

    best of all   = best of the blocks' best, from their logits
    log of sum    = log-sum-exp of the blocks' own
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pipelines.phowhisper.layout import CLASSIFIER, Weights
from pipelines.phowhisper.nodes import Writer

BEST = 8  # as many as the beam search takes of a frame
_BLOCK = 2_048
_GROUP = 32
_LAST = {"axis": -1}


def columns(weights: Weights) -> int:
    """K, the tokens known of each frame."""
    return min(BEST, len(weights[f"{CLASSIFIER}.weight"]))


def add(to: Writer, hidden: str, weights: Weights) -> tuple[str, str]:
    """Log-probabilities float32 [B, T', K] and tokens int32 [B, T', K], the likeliest first."""
    rows, biases = weights[f"{CLASSIFIER}.weight"], weights[f"{CLASSIFIER}.bias"]
    best = columns(weights)
    flat = to.add("Reshape", hidden, to.ints(-1, rows.shape[1]))
    blocks = _blocks(len(rows))
    found = [_block(to, flat, rows[first:end], biases[first:end], first) for first, end in blocks]
    logits, tokens, totals = _parts(to, found, [min(BEST, end - first) for first, end in blocks])
    scores, order = to.split("TopK", logits, to.ints(best), outputs=2, attributes=_LAST)
    chosen = to.add("GatherElements", tokens, order, attributes=_LAST)
    total = to.add("ReduceLogSumExp", totals, attributes={"axes": [-1], "keepdims": 1})
    frames = to.add("Slice", to.add("Shape", hidden), to.ints(0), to.ints(2))
    shape = to.add("Concat", frames, to.ints(best), attributes={"axis": 0})
    return (
        to.add("Reshape", to.add("Sub", scores, total), shape),
        to.add("Cast", to.add("Reshape", chosen, shape), attributes={"to": TensorProto.INT32}),
    )


def _blocks(count: int) -> list[tuple[int, int]]:
    """Ranges of rows: blocks of whole groups, and the rows that are left."""
    bounds = [*range(0, count - count % _GROUP, _BLOCK), count - count % _GROUP, count]
    return [(first, end) for first, end in pairwise(bounds) if end > first]


def _block(to: Writer, flat: str, rows: NDArray[np.float32], biases: NDArray[np.float32], first: int) -> str:
    """[N, k + k + 1]: the best k logits, at most 8, their tokens, and the log of the sum of all exponentials.

    They are one tensor, tokens as floats, because ONNX Runtime goes back from the outputs to find the order of nodes:
    apart, the tokens of all blocks would be found before the first sum, and all logits would be kept for it.
    """
    name = f"{CLASSIFIER}.{first}"
    product = to.add("MatMul", flat, to.weight(f"{name}.weight", rows.T))
    logits = to.add("Add", product, to.weight(f"{name}.bias", biases))
    total = to.add("Sub", _first(to, logits), _first(to, to.add("LogSoftmax", logits, attributes=_LAST)))
    scores, place = _best_of_groups(to, logits, len(rows)) if len(rows) % _GROUP == 0 else _best(to, logits, len(rows))
    tokens = to.add("Cast", to.add("Add", place, to.scalar(first)), attributes={"to": TensorProto.FLOAT})
    return to.add("Concat", scores, tokens, total, attributes=_LAST)


def _parts(to: Writer, found: list[str], counts: list[int]) -> tuple[str, str, str]:
    """Logits [N, sum of counts], their tokens, and totals [N, blocks], of all blocks."""
    sizes = [size for count in counts for size in (count, count, 1)]
    parts = to.split("Split", _joined(to, found), to.ints(*sizes), outputs=len(sizes), attributes=_LAST)
    return _joined(to, parts[::3]), _joined(to, parts[1::3]), _joined(to, parts[2::3])


def _best(to: Writer, scores: str, count: int) -> tuple[str, str]:
    best, place = to.split("TopK", scores, to.ints(min(BEST, count)), outputs=2, attributes=_LAST)
    return best, place


def _best_of_groups(to: Writer, scores: str, count: int) -> tuple[str, str]:
    """As `_best`, for a count of whole groups."""
    best = min(BEST, count // _GROUP)
    groups = to.add("Reshape", scores, to.ints(-1, count // _GROUP, _GROUP))
    _, chosen = _best(to, to.add("ReduceMax", groups, attributes={"axes": [2], "keepdims": 0}), count // _GROUP)
    near = to.add("GatherND", groups, to.add("Unsqueeze", chosen, to.ints(2)), attributes={"batch_dims": 1})
    found, place = _best(to, to.add("Reshape", near, to.ints(-1, best * _GROUP)), best * _GROUP)
    group = to.add("GatherElements", chosen, to.add("Div", place, to.scalar(_GROUP)), attributes=_LAST)
    within = to.add("Mod", place, to.scalar(_GROUP))
    return found, to.add("Add", to.add("Mul", group, to.scalar(_GROUP)), within)


def _first(to: Writer, x: str) -> str:
    """The first column [N, 1]."""
    return to.add("Slice", x, to.ints(0), to.ints(1), to.ints(-1))


def _joined(to: Writer, blocks: list[str]) -> str:
    return blocks[0] if len(blocks) == 1 else to.add("Concat", *blocks, attributes=_LAST)
