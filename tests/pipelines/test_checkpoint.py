"""pipelines.checkpoint: every published form is read, and nothing in a file can run."""

import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipelines import checkpoint
from pipelines.errors import Permanent

STATE = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,  # a view that is not contiguous
    "half": torch.arange(8).half()[2:5],
    "bf16": torch.tensor([1.0, -2.5, 3.140625e5], dtype=torch.bfloat16),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "count": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


class Marked:
    """Touches a file when it is called by a pickle."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def saved(path, content):
    torch.save(content, path)
    return path


def packed(path, pickled, **members):
    """A zip as torch.save makes it, with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def same(found, state=STATE):
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        expected = state[name].detach()
        values = tensor.read()
        assert tensor.shape == tuple(expected.shape) == values.shape
        expected = expected.float() if expected.is_floating_point() else expected
        np.testing.assert_array_equal(values, expected.numpy())
        assert values.dtype == expected.numpy().dtype


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: state,
        OrderedDict,
    ],
)
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path, wrapped):
    same(checkpoint.read(saved(tmp_path / "a.ckpt", wrapped(STATE))))


def test_the_state_dict_of_a_module_keeps_its_names(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    same(checkpoint.read(saved(tmp_path / "a.pt", module.state_dict())), module.state_dict())


def test_safetensors_are_read_in_every_type(tmp_path):
    state = {name: value.detach().contiguous() for name, value in STATE.items()}
    save_file(state, tmp_path / "model.safetensors")
    same(checkpoint.read(tmp_path / "model.safetensors"))


def test_a_directory_is_read_whole_or_in_shards(tmp_path):
    state = {name: value.detach().contiguous() for name, value in STATE.items()}
    halves = [dict(list(state.items())[:4]), dict(list(state.items())[4:])]
    (tmp_path / "safe").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "one").mkdir()
    for number, half in enumerate(halves):
        save_file(half, tmp_path / "safe" / f"{number}.safetensors")
        torch.save(half, tmp_path / "bin" / f"{number}.bin")
    for folder, index, suffix in (
        ("safe", "model.safetensors.index.json", "safetensors"),
        ("bin", "pytorch_model.bin.index.json", "bin"),
    ):
        places = {name: f"{number}.{suffix}" for number, half in enumerate(halves) for name in half}
        (tmp_path / folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        same(checkpoint.read(tmp_path / folder))
    saved(tmp_path / "one" / "best-val_wer=0.3986.ckpt", {"state_dict": STATE})
    same(checkpoint.read(tmp_path / "one"))


def test_shards_elsewhere_are_not_opened(tmp_path):
    index = {"weight_map": {"a": "../secret.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(Permanent, match="do not lie beside it"):
        checkpoint.read(tmp_path)


def test_a_directory_with_no_checkpoint_or_several_says_what_it_should_hold(tmp_path):
    with pytest.raises(Permanent, match=r"model\.safetensors.*found: none"):
        checkpoint.read(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        saved(tmp_path / name, STATE)
    with pytest.raises(Permanent, match=r"a\.ckpt, b\.ckpt"):
        checkpoint.read(tmp_path)


def test_foreign_objects_are_inert_and_the_tensors_beside_them_are_read(tmp_path):
    transformers, regex = pytest.importorskip("transformers"), pytest.importorskip("regex")
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    letters = {letter: number for number, letter in enumerate("abĠ")}
    tokenizer = transformers.WhisperTokenizer(vocab=letters | {"<|endoftext|>": 3}, merges=[])
    content = {
        "state_dict": STATE,
        "processor": transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer),
        "optimizer_states": [optimizer.state_dict()],
        "padding": transformers.utils.PaddingStrategy.LONGEST,  # an enumeration: getattr(class, name)
        "generator": np.random.default_rng(0),
        "pattern": regex.compile(r"'s|\p{L}+"),  # of a tokenizer in Python
        "others": [datetime(2025, 4, 26, tzinfo=UTC), Decimal(1), defaultdict(list), torch.nn.functional.gelu],
        "kinds": {1, 2, frozenset([3]), Path("/x"), torch.float32, torch.device("cpu"), torch.Size([1])},
    }
    same(checkpoint.read(saved(tmp_path / "a.ckpt", content)))


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (builtins.eval, ("__import__('pathlib').Path('{}').touch()",), r"builtins\.eval"),
        (builtins.exec, ("open('{}', 'w')",), r"builtins\.exec"),
        (os.open, ("{}", os.O_CREAT), r"(posix|nt)\.open"),
        (open, ("{}", "w"), r"io\.open"),
        (torch.load, ("{}",), r"torch\.serialization\.load"),
        (np.memmap.__mro__[1].tofile, (np.zeros(1), "{}"), r"builtins\.getattr"),
        (subprocess.Popen, (["touch", "{}"],), r"subprocess\.Popen"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_name_and_nothing_runs(tmp_path, call, arguments, named):
    marker = tmp_path / "ran"
    filled = [argument.format(marker) if isinstance(argument, str) else argument for argument in arguments]
    if filled and isinstance(filled[0], list):
        filled[0] = [part.format(marker) for part in filled[0]]
    path = saved(tmp_path / "evil.ckpt", {"state_dict": STATE, "processor": Marked(call, *filled)})
    with pytest.raises(Permanent, match=rf"refused: it calls {named}, which no checkpoint needs"):
        checkpoint.read(path)
    assert not marker.exists()


def test_the_marker_of_the_test_above_would_be_there_if_the_pickle_ran(tmp_path):
    pickle.loads(pickle.dumps(Marked(os.system, f"touch {tmp_path / 'ran'}")))  # noqa: S301  (that is the point)
    assert (tmp_path / "ran").exists()


def test_what_is_looked_up_in_a_module_is_refused_before_it_can_be_called(tmp_path):
    pickled = b"\x80\x02cbuiltins\ngetattr\ncposix\nopen\nX\x08\x00\x00\x00__call__\x86R."
    with pytest.raises(Permanent, match=r"calls builtins\.getattr"):
        checkpoint.read(packed(tmp_path / "a.ckpt", pickled))


def test_what_a_call_gave_cannot_be_called(tmp_path):
    pickled = b"\x80\x02ctransformers\nAutoModel\n)RX\x02\x00\x00\x00id\x85R."
    with pytest.raises(Permanent, match=r"calls what transformers\.AutoModel gave"):
        checkpoint.read(packed(tmp_path / "a.ckpt", pickled))


def test_a_stand_in_cannot_be_given_powers_nor_keeps_any_for_the_next_file(tmp_path):
    # BUILD with a state for slots sets attributes: of a global, of a dictionary, of a rebuilt tensor.
    attributes = b"}X\x05\x00\x00\x00itemsNs\x86b"
    for target in (b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R"):
        path = packed(tmp_path / "a.ckpt", b"\x80\x02" + target + b"N" + attributes + b".")
        with pytest.raises(Permanent):
            checkpoint.read(path)
    same(checkpoint.read(saved(tmp_path / "b.ckpt", {"state_dict": OrderedDict(STATE)})))


def test_a_pickle_cannot_make_the_reader_allocate(tmp_path):
    huge = struct.pack("<I", 2**32 - 1)
    for pickled in (
        b"\x80\x02Nr" + huge + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x80\x04T" + huge,
    ):
        with pytest.raises(Permanent, match="its pickle is damaged"):
            checkpoint.read(packed(tmp_path / "a.ckpt", pickled))


def test_a_tensor_must_lie_within_its_storage(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for offset, size, stride in (
        (b"K\x00", b"K\x03", b"K\x01"),
        (b"K\x02", b"K\x01", b"K\x01"),
        (b"K\x00", b"K\x09", b"K\x00"),
    ):
        pickled = (
            b"\x80\x02}X\x01\x00\x00\x00w" + rebuild + b"(" + storage + offset + size + b"\x85" + stride + b"\x85\x89Nt"
        )
        path = packed(tmp_path / "a.ckpt", pickled + b"Rs.", **{"data/0": bytes(8)})
        with pytest.raises(Permanent, match="beyond its storage of 2 values"):
            checkpoint.read(path)


def test_a_compressed_checkpoint_is_refused_before_it_unpacks(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(Permanent, match="is compressed"):
        checkpoint.read(tmp_path / "bomb.ckpt")


def test_a_bare_pickle_is_refused_with_what_to_do(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(Permanent, match=r"bare pickle.*safetensors"):
        checkpoint.read(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [([1, 2], "holds no dictionary"), ({"state_dict": {"a": 1}}, "holds no tensors"), ({}, "holds no tensors")],
)
def test_a_checkpoint_without_weights_is_refused(tmp_path, content, problem):
    with pytest.raises(Permanent, match=problem):
        checkpoint.read(saved(tmp_path / "a.ckpt", content))


def _forms():
    """A small checkpoint in each form, as bytes."""
    small = {name: STATE[name].detach().contiguous() for name in ("weight", "bf16")}
    zipped = io.BytesIO()
    torch.save({"state_dict": small}, zipped)
    from safetensors.torch import save

    return zipped.getvalue(), save(small)


FORMS = _forms()


def _read(data, path):
    """Reads every tensor too: nothing but Permanent may come."""
    path.write_bytes(data)
    with suppress(Permanent):
        for tensor in checkpoint.read(path).values():
            assert tensor.read().shape == tensor.shape


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "file"


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10\x00\x00\x00\x00\x00\x00\x00{"])
)
def test_garbage_is_refused_and_never_a_traceback(scratch, data, start):
    _read(start + data, scratch)


@settings(max_examples=150)
@given(st.sampled_from(FORMS), st.data())
def test_a_damaged_file_is_refused_or_read(scratch, form, data):
    changed = bytearray(form)
    for place in data.draw(st.lists(st.integers(0, len(form) - 1), max_size=4)):
        changed[place] = data.draw(st.integers(0, 255))
    _read(bytes(changed[: data.draw(st.integers(0, len(form)))]), scratch)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_pickle_is_refused_or_read(scratch, data):
    with zipfile.ZipFile(io.BytesIO(FORMS[0])) as archive:
        pickled = bytearray(
            archive.read("file/data.pkl" if "file/data.pkl" in archive.namelist() else "archive/data.pkl")
        )
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/" in name}
    for place in data.draw(st.lists(st.integers(0, len(pickled) - 1), max_size=6)):
        pickled[place] = data.draw(st.integers(0, 255))
    packed(scratch, bytes(pickled), **members)
    _read(scratch.read_bytes(), scratch)


@given(st.integers(1, 60))
def test_a_file_that_is_cut_off_is_refused(scratch, share):
    for form in FORMS:
        scratch.write_bytes(form[: len(form) * share // 61])
        with pytest.raises(Permanent):
            checkpoint.read(scratch)
