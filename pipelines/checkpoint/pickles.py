"""torch.save's zip file: a pickle of the structure, and one member of raw bytes for each storage.

A pickle is a program that may call anything. This one is read by an unpickler that imports nothing: it makes tensors
and plain containers, and puts an inert stand-in for everything else, so that a published checkpoint loads with the
processor, optimizer and callbacks that were pickled into it. Nothing foreign can run. A call that no checkpoint needs,
os.system for instance, is refused all the same: whoever put it there wanted it to run.

In a pickle a class and a function look alike; what tells them apart without importing them is how they are used.
Objects are made by NEWOBJ, which calls nothing. REDUCE does call: a stand-in may be called that way only if it has the
name of a class, or of a function that rebuilds one, in a library that checkpoints hold objects of.
"""

import math
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint.tensor import Storage, Tensor, decode, item_bytes
from pipelines.errors import Permanent

_MAX_PICKLE_BYTES = 256 << 20  # a pickled tokenizer has a few megabytes
_DAMAGED = (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, RuntimeError)

# What may be called, by a stand-in: classes of these libraries, anything of these modules, and what rebuilds objects.
_LIBRARIES = {"lightning", "lightning_fabric", "lightning_utilities", "numpy", "omegaconf", "peft", "pytorch_lightning"}
_LIBRARIES |= {"tokenizers", "torch", "torchmetrics", "transformers"}
_MODULES = {"argparse", "collections", "datetime", "decimal", "fractions", "pathlib", "uuid"}
_TYPES = {"bytearray", "bytes", "complex", "frozenset", "object", "range", "set", "slice"}
_REBUILDING = {f"builtins.{name}" for name in _TYPES} | {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *("numpy.dtype", "torch.device", "torch._tensor._rebuild_from_type_v2", "_codecs.encode", "copyreg._reconstructor"),
    *("functools.partial", "re._compile", "_regex.compile", "regex._regex.compile"),
}
_REBUILDING_STARTS = ("torch._utils._rebuild_", "numpy.random.")
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


def load(file: Path) -> object:
    """The unpickled structure: its tensors as `Tensor`, foreign objects as stand-ins. Raises Permanent."""
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = _sizes(file, archive)
            found = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(found) != 1:
                raise Permanent(f"{file.name} is a zip file, but none of torch.save: it has {len(found)} data.pkl")
            folder = found[0].removesuffix("data.pkl")
            if folder + "byteorder" in sizes and archive.read(folder + "byteorder") != b"little":
                raise Permanent(f"{file.name} has its numbers in big-endian order, which is not read")
            data = archive.read(found[0])
    except _DAMAGED as error:
        raise Permanent(f"{file.name} is damaged or cut off: {error}") from error
    try:
        _scan(data)
        return _Unpickler(data, file, folder, sizes).load()
    except Permanent:
        raise
    except Exception as error:  # a damaged pickle fails in every way that Python knows
        raise Permanent(f"{file.name}: its pickle is damaged ({type(error).__name__}: {error})") from error


def _sizes(file: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    """The size of each member. Together they may not hold more than the file: torch stores without compression."""
    members = archive.infolist()
    for info in members:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Permanent(f"{file.name}: {info.filename} is compressed, and torch.save compresses nothing")
        if info.filename.endswith("/data.pkl") and info.file_size > _MAX_PICKLE_BYTES:
            raise Permanent(f"{file.name}: its pickle has {info.file_size} bytes, more than {_MAX_PICKLE_BYTES}")
    if sum(info.file_size for info in members) > file.stat().st_size:
        raise Permanent(f"{file.name}: its members overlap")
    return {info.filename: info.file_size for info in members}


def _scan(data: bytes) -> None:
    """Refuse what makes the unpickler allocate: it trusts lengths, and the index under which a value is remembered."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"}:
            raise ValueError(f"{opcode.name} is of a protocol that torch.save does not use")
        counted = opcode.name == "FRAME" or opcode.name.endswith("PUT")
        if counted and not (isinstance(argument, int) and 0 <= argument <= len(data)):
            raise ValueError(f"{opcode.name} {argument} in {len(data)} bytes")


class _Dictionary(dict[Any, Any]):
    """In place of OrderedDict, whose instances take attributes: a pickle could replace their methods."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None: ...


class _Foreign(type):
    """The class of stand-ins: `refers` is the global that one stands in for."""

    refers: str

    def __call__(cls, *arguments: object) -> object:
        """What REDUCE does with a global. (NEWOBJ goes to `__new__` at once.)"""
        name = cls.refers
        known = cls.is_class() or name in _REBUILDING or name.startswith(_REBUILDING_STARTS)
        if not known and not (name == "builtins.getattr" and _of_stand_in(arguments)):
            raise Permanent(
                f"the checkpoint is refused: it calls {name}, which no checkpoint needs. Nothing was run. "
                "If you trust it, save its state dict as safetensors where it was made"
            )
        return super().__call__()

    def is_class(cls) -> bool:
        package, called = cls.refers.partition(".")[0], cls.refers.rpartition(".")[2]
        return package in _MODULES or (package in _LIBRARIES and called[:1].isupper())


def _of_stand_in(arguments: tuple[object, ...]) -> bool:
    """Whether these are getattr's, as Python pickles the member of an enumeration and the method of an object."""
    owner = arguments[0] if arguments else None
    return isinstance(owner, _StandIn) or (isinstance(owner, _Foreign) and owner.is_class())


class _StandIn(metaclass=_Foreign):
    """An object of a class that is not imported: takes whatever the pickle gives it, keeps nothing, does nothing."""

    refers = "an object"

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __call__(self, *_: object) -> object:
        raise Permanent(f"the checkpoint is refused: it calls what {type(self).refers} gave. Nothing was run.")

    def _swallow(self, *_: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = update = _swallow


class _Unpickler(pickle.Unpickler):
    """Knows how tensors are rebuilt. What it hands out it makes anew, so that no file can change it for the next."""

    def __init__(self, data: bytes, file: Path, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(BytesIO(data), encoding="utf-8")
        self._file, self._folder, self._sizes = file, folder, sizes

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401  (pickle's signature)
        module, own = NAME_MAPPING.get((module_name, global_name), (module_name, global_name))
        name = f"{IMPORT_MAPPING.get(module, module)}.{own}"  # torch pickles with the names of Python 2
        if name == "collections.OrderedDict":
            return _Dictionary
        if name in {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}:
            return lambda storage, offset, shape, strides, *_: self._tensor(storage, offset, shape, strides)
        if name in {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}:
            return lambda tensor, *_: tensor
        return _Foreign(global_name, (_StandIn,), {"refers": name})

    def persistent_load(self, pid: Any) -> Storage:  # noqa: ANN401  (pickle's signature)
        kind, stored, key, _, count = pid
        refers = getattr(stored, "refers", "")
        dtype = _STORAGES.get(refers.rpartition(".")[2], refers)
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage is described in a way that torch.save does not use")
        member = f"{self._folder}data/{key}"
        if self._sizes.get(member) != count * item_bytes(dtype):
            raise Permanent(f"{self._file.name}: storage {key} should have {count} values of {dtype}, and has not")
        return Storage(member, dtype, count)

    def _tensor(self, storage: object, offset: object, shape: object, strides: object) -> Tensor:
        if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise TypeError("a tensor is not built from a storage")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor's shape, strides and offset must be whole numbers")
        assert isinstance(offset, int)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and max(last + 1, math.prod(shape)) > storage.length:
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.length} values")
        return Tensor(shape, storage.dtype, partial(_read, self._file, storage, offset, shape, strides))


def _read(
    file: Path, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> NDArray[np.generic]:
    try:
        with zipfile.ZipFile(file) as archive:
            data = archive.read(storage.member)  # which checks the CRC
    except _DAMAGED as error:
        raise Permanent(f"{file.name} is damaged or cut off: {error}") from error
    values = decode(data, storage.dtype)[offset:]
    steps = tuple(values.itemsize * stride for stride in strides)
    return np.array(np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False))
