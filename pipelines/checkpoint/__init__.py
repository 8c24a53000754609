"""A checkpoint of any published form to its tensors by name. Nothing in it is executed.

    a file       Lightning's .ckpt, torch.save's zip (`pickles`), safetensors (`flat`): told apart by their first bytes
    a directory  transformers' model.safetensors or pytorch_model.bin, whole or in shards, or the one checkpoint in it

Tensors stay in their file until they are asked for: of a training checkpoint two thirds are the optimizer's state.
"""

import json
from pathlib import Path

from pipelines.checkpoint import flat, pickles
from pipelines.checkpoint.tensor import Tensor
from pipelines.errors import Permanent

__all__ = ["Tensor", "file_of", "read"]

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
_MAX_INDEX_BYTES = 16 << 20
_STATES = ("state_dict", "model_state_dict")  # Lightning's key, and the other that training scripts use


def read(source: Path) -> dict[str, Tensor]:
    """The tensors of the model in a checkpoint file or directory. Raises Permanent with the reason why not."""
    file = file_of(source)
    if file.name not in _SHARDED:
        return _read_file(file)
    tensors: dict[str, Tensor] = {}
    for shard in _shards(file):
        tensors |= _read_file(shard)
    return tensors


def file_of(source: Path) -> Path:
    """`source` itself where it is a file; in a directory the file to read, which may be the index of shards."""
    if not source.is_dir():
        return source
    for name in (*_WHOLE, *_SHARDED):
        if (source / name).is_file():
            return source / name
    found = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise Permanent(f"{source} should hold {_WHOLE[0]}, {_WHOLE[1]} or one checkpoint; checkpoints found: {names}")
    return found[0]


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise Permanent(f"{file} cannot be read ({error.strerror})") from error
    if start.startswith(b"PK\x03\x04"):
        return _state(file, pickles.load(file))
    if flat.matches(start):
        return flat.load(file)
    if start[:1] == b"\x80":
        raise Permanent(
            f"{file.name} is a bare pickle, as torch before 1.6 and `pickle.dump` write it, and is not read; "
            "load it where you trust it and save its state dict as safetensors"
        )
    raise Permanent(f"{file.name} is no checkpoint: neither the zip file of torch.save nor safetensors")


def _state(file: Path, content: object) -> dict[str, Tensor]:
    """The state dict in what a pickle held: under its usual keys, or the whole of it."""
    if not isinstance(content, dict):
        raise Permanent(f"{file.name} holds no dictionary, and a state dict is one")
    state = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise Permanent(f"{file.name} holds no tensors under {_STATES[0]!r}, under {_STATES[1]!r} or at its top")
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each once; they lie beside it."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise Permanent(f"{index.name} is larger than any index of shards")
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Permanent(f"{index.name} is not an index of shards") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise Permanent(f"{index.name} names files that do not lie beside it")
    return [index.parent / name for name in names]
