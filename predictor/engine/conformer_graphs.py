"""The graphs of an indic-conformer: what each takes and gives, as published, and how they are opened.

B rows, T feature frames, F encoder frames, U tokens; D, J, H the widths of encoder, joint and prediction network.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from predictor.errors import InvalidBundle

Device = Literal["cpu", "cuda"]
Shape = tuple[int | str, ...]
Tensors = dict[str, tuple[str, Shape]]  # name: type and shape
MEL_BINS = 80

_CUDA = "CUDAExecutionProvider"
# Of the other searches, EXHAUSTIVE takes 50 s for each new length and HEURISTIC picks algorithms that take ten times as
# long; padding to two dimensions is what DEFAULT needs to be fast for convolutions over time.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "DEFAULT", "cudnn_conv1d_pad_to_nc1d": "1"}


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: Tensors
    outputs: Tensors


_JOINT = ("float", ("B", 1, "J"))
ENCODER = Signature(
    {"audio_signal": ("float", ("B", MEL_BINS, "T")), "length": ("int64", ("B",))},
    {"outputs": ("float", ("B", "D", "F")), "encoded_lengths": ("int64", ("B",))},
)
CTC_DECODER = Signature({"encoder_output": ("float", ("B", "D", "F"))}, {"logprobs": ("float", ("B", "F", "tokens"))})
RNNT_DECODER = Signature(
    {
        "targets": ("int32", ("B", "U")),
        "target_length": ("int32", ("B",)),
        "states.1": ("float", (2, "B", "H")),
        "onnx::Slice_3": ("float", (2, 1, "H")),
    },
    {
        "outputs": ("float", ("B", "H", "U")),
        "prednet_lengths": ("int32", ("B",)),
        "states": ("float", (2, "B", "H")),
        "162": ("float", (2, 1, "H")),
    },
)
JOINT_ENC = Signature({"input": ("float", ("B", "F", "D"))}, {"output": ("float", ("B", "F", "J"))})
JOINT_PRED = Signature({"input": ("float", ("B", "U", "H"))}, {"output": ("float", ("B", "U", "J"))})
JOINT_PRE_NET = Signature({"input": _JOINT}, {"output": _JOINT})
JOINT_POST_NET = Signature({"input": _JOINT}, {"output": ("float", ("B", 1, "local tokens"))})


def open_graph(path: Path, device: Device = "cpu") -> Any:  # noqa: ANN401  (onnxruntime has no types)
    """An ONNX Runtime session that computes in the caller's thread; raises InvalidBundle."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    # An arena keeps the largest window's memory for ever; these graphs run as fast without it.
    options.enable_cpu_mem_arena = False
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        if _CUDA not in onnxruntime.get_available_providers():
            raise InvalidBundle(["this ONNX Runtime has no CUDA: onnxruntime-gpu has, or ask for the CPU"])
        providers.insert(0, (_CUDA, _CUDA_OPTIONS))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise InvalidBundle([f"{path.name} is not a graph that can be loaded"]) from error


def differences(file: str, found: Signature, wanted: Signature, sizes: dict[str, int]) -> Iterator[str]:
    """A sentence for each difference of names, types and sizes; further outputs, free and unknown sizes are none.

    `sizes` has what D, J, H and the numbers of tokens are known to be, and learns what this graph says.
    """
    if found.inputs.keys() != wanted.inputs.keys():
        yield f"{file} takes {_names(found.inputs)}, and {_names(wanted.inputs)} is expected"
    if not found.outputs.keys() >= wanted.outputs.keys():
        yield f"{file} gives {_names(found.outputs)}, and {_names(wanted.outputs)} is expected"
    for mine, theirs in ((wanted.inputs, found.inputs), (wanted.outputs, found.outputs)):
        for name in filter(theirs.__contains__, mine):
            (kind, shape), (other_kind, other_shape) = mine[name], theirs[name]
            if kind != other_kind:
                yield f"{file}: {name} is of the type {other_kind}, and {kind} is expected"
            if other_shape and not _agree(shape, other_shape, sizes):
                known = [sizes.get(size, size) if isinstance(size, str) else size for size in shape]
                yield f"{file}: {name} has the shape {_shape(other_shape)}, and {_shape(known)} is expected"


def _agree(wanted: Shape, found: Shape, sizes: dict[str, int]) -> bool:
    return len(wanted) == len(found) and all(
        _is(mine, theirs, sizes) for mine, theirs in zip(wanted, found, strict=True)
    )


def _is(wanted: int | str, found: int | str, sizes: dict[str, int]) -> bool:
    """B, T, F and U may be anything; the others are one size throughout a bundle."""
    if isinstance(found, str) or wanted in ("B", "T", "F", "U"):
        return True
    if isinstance(wanted, str):
        wanted = sizes.setdefault(wanted, found)
    return wanted == found


def signature(session: Any) -> Signature:  # noqa: ANN401  (as above)
    """What a session takes and gives; sizes that are free have names."""
    inputs, outputs = (
        {node.name: (_kind(node.type), tuple(size or "?" for size in node.shape)) for node in nodes}
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Signature(inputs, outputs)


def _kind(text: str) -> str:
    return text.removeprefix("tensor(").removesuffix(")")


def _names(tensors: Tensors) -> str:
    return ", ".join(sorted(tensors)) or "nothing"


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
