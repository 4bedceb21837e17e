"""Pickled checkpoints: tensors come out, code does not run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.pickles import is_pickle, read_pickle
from dreambooth_core.formats.storage import write_tensors
from tests.helpers.mutations import mutated


class Evil:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_steps_and_metadata(tmp_path, zipped):
    path = tmp_path / "a.ckpt"
    saved = {
        "state_dict": {"a": torch.ones(2)},
        "global_step": 7,
        "metadata": {"k": "v"},
        "epoch": 1,
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert is_pickle(path)
    read = read_pickle(path)
    assert torch.equal(read.tensors["a"], torch.ones(2))
    assert (read.global_step, read.metadata) == (7, {"k": "v"})


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_with_its_name_and_not_run(tmp_path, zipped):
    path = tmp_path / "a.ckpt"
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "x": Evil(tmp_path / "ran")},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(
        Unsupported, match=r"refused: this pickle wants to load \w+\.mkdir.*safetensors"
    ):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_of_code_is_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(UserError, match=r"refused|damaged"):
        read_pickle(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_trainer_callbacks_become_placeholders(tmp_path, monkeypatch):
    """Stable Diffusion 1.4's own file holds one."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "callbacks": {kind: {"best": kind()}}},
        tmp_path / "a.ckpt",
    )
    assert list(read_pickle(tmp_path / "a.ckpt").tensors) == ["a"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.8, 0.99])
def test_a_cut_file_is_said_to_be_cut(tmp_path, zipped, part):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(5000)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match="cut short"):
        read_pickle(path)


def test_nothing_inside(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="no tensors"):
        read_pickle(tmp_path / "a.ckpt")


def test_a_safetensors_file_whose_header_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """A header of 0x0280 bytes begins as pickle protocol 2 does."""
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {"note": "x"})
    missing = 0x280 - int.from_bytes(path.read_bytes()[:8], "little")
    write_tensors(path, {"a": torch.zeros(1)}, {"note": "x" * (1 + missing)})
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(path)


def archive(path: Path, pickled: bytes, *, storage: bytes = b"\0" * 8, packed: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", packed or zipfile.ZIP_STORED) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/byteorder", "little")
        file.writestr("a/data/0", storage)
        file.writestr("a/version", "3\n")
    return path


def tensor(
    size: bytes, stride: bytes, *, count: bytes = b"K\x02", offset: bytes = b"K\x00"
) -> bytes:
    """A pickle of ``{"a": tensor}`` over two fp32 numbers; the numbers as instructions."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + count
        + b"tQ"
        + offset
        + b"("
        + size
        + b"t("
        + stride
        + b"t\x89ccollections\nOrderedDict\n)RtRs."
    )


BILLION = b"J\x00\xca\x9a\x3b"


def test_a_tensor_written_by_hand_is_read(tmp_path):
    read = read_pickle(archive(tmp_path / "a.ckpt", tensor(b"K\x02", b"K\x01")))
    assert read.tensors["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (tensor(BILLION, b"K\x00"), "has only 8 bytes"),
        (tensor(BILLION, b"K\x01"), "has only 8 bytes"),
        (tensor(b"K\x02", b"K\x02"), "has only 8 bytes"),
        (tensor(b"K\x02", b"K\x01", offset=b"K\x01"), "has only 8 bytes"),
        (tensor(b"K\x02", b"K\x01", offset=b"J\xff\xff\xff\xff"), "no valid shape"),
        (tensor(b"K\x02", b"J\xff\xff\xff\xff"), "no valid shape"),
        (tensor(b"K\x02K\x01", b"K\x01"), "no valid shape"),
        (tensor(b"K\x01" * 40, b"K\x01" * 40), "no valid shape"),
        (tensor(b"K\x02", b"K\x01", count=BILLION), "are wanted of storage '0', has 8"),
        (tensor(b"K\x02", b"K\x01", count=b"N"), "storage that is none"),
        (b"\x80\x02}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.", "too many values"),
        (b"\x80\x02c__builtin__\nbytearray\nJ\x00\xca\x9a\x3b\x85R.", "bytearray, which is code"),
        (b"\x80\x02ctorch\nFloatStorage\nJ\x00\xca\x9a\x3b\x85R.", "calls torch.FloatStorage"),
        (b"\x80\x02" + b"]" * 1_000_001 + b".", "too many instructions"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "end in the middle"),
        (b"\x80\x02K\x01K\x02s.", "do not fit together"),
        (b"", "end in the middle"),
    ],
)
def test_sizes_that_the_file_does_not_have_are_refused(tmp_path, pickled, reason):
    with pytest.raises(UserError, match=reason):
        read_pickle(archive(tmp_path / "a.ckpt", pickled))


def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path):
    path = archive(
        tmp_path / "a.ckpt",
        tensor(b"K\x02", b"K\x01"),
        storage=b"\0" * 50_000_000,
        packed=zipfile.ZIP_DEFLATED,
    )
    with pytest.raises(UserError, match="compressed"):
        read_pickle(path)


def test_many_names_for_one_storage_do_not_multiply_it(tmp_path):
    one = torch.zeros(100_000)
    torch.save({f"t{i}": one for i in range(50)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="many times the file's own"):
        read_pickle(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "strange",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex128),
    ],
    ids=("sparse", "meta", "complex"),
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, strange):
    torch.save({"a": strange}, tmp_path / "a.ckpt")
    with pytest.raises(UserError):
        read_pickle(tmp_path / "a.ckpt")


def saved(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    content = {"state_dict": {"a": torch.ones(2, 3), "b": torch.ones(1).half()}, "global_step": 7}
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.one_of(mutated(saved(zipped=True)), mutated(saved(zipped=False))))
def test_any_change_of_a_file_is_read_or_refused_in_one_way(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m") / "a.ckpt"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        assert all(isinstance(t, torch.Tensor) for t in read_pickle(path).tensors.values())


@settings(max_examples=250, deadline=None)
@given(mutated(tensor(b"K\x02", b"K\x01")))
def test_any_change_of_the_instructions_is_read_or_refused_in_one_way(tmp_path_factory, pickled):
    path = archive(tmp_path_factory.mktemp("m") / "a.ckpt", pickled)
    try:
        read = read_pickle(path)
    except UserError:
        return
    assert all(t.nbytes <= 8 for t in read.tensors.values())
