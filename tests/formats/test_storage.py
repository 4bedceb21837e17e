"""Safetensors reading and writing: what comes back, and what stays when a write fails."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.formats import files, storage

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_is_written_is_what_the_library_reads(tmp_path_factory, entries, metadata):
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    tensors = {
        name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in entries.items()
    }
    storage.write_tensors(path, tensors, metadata)
    assert storage.read_metadata(path) == metadata
    for read in (load_file(path), storage.read_tensors(path)):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_lazy_tensors_and_views_are_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    lazy = storage.Lazy((2, 2), torch.float16, lambda: torch.ones(2, 2, dtype=torch.float16))
    storage.write_tensors(tmp_path / "a.safetensors", {"t": base.T, "lazy": lazy})
    read = storage.read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(read["t"], base.T) and torch.equal(read["lazy"], torch.ones(2, 2).half())


def test_changing_a_mapped_tensor_leaves_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    storage.write_tensors(path, {"a": torch.ones(4)})
    storage.read_tensors(path)["a"].zero_()
    assert torch.equal(storage.read_tensors(path)["a"], torch.ones(4))


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_files_are_readable_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        storage.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    storage.write_tensors(path, {"a": torch.ones(1)})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "_write_tensor", full)
    with pytest.raises(SaveFailed, match=r"a\.safetensors: could not save: the disk is full"):
        storage.write_tensors(path, {"a": torch.zeros(1)})
    assert storage.read_tensors(path)["a"].item() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_error_while_a_lazy_tensor_is_made_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_text(path, "old")

    def broken() -> torch.Tensor:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        storage.write_tensors(path, {"a": storage.Lazy((1,), torch.float32, broken)})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_the_way_and_a_file_as_folder(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SaveFailed, match="could not save: a folder"):
        files.write_text(tmp_path / "taken", "x")
    with pytest.raises(SaveFailed, match="is a file, not a folder"):
        files.write_text(tmp_path / "file" / "x.txt", "x")


def test_meta_tensors_are_refused(tmp_path):
    with pytest.raises(SaveFailed, match="holds no data"):
        storage.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1, device="meta")})


@pytest.mark.parametrize("keep", [0, 5, 40, 200])
def test_a_cut_file_is_said_to_be_cut(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(50)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="cut short" if keep > 8 else "not a safetensors file"):
        storage.read_tensors(path)


@pytest.mark.parametrize(
    "header",
    ['{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', '{"a":3}', '{"a":', "[1, 2]"],
)
def test_a_damaged_header_is_one_clear_line(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 8)
    with pytest.raises(UserError, match=r"damaged|not a safetensors"):
        storage.read_header(path)


def test_missing_names_and_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        storage.read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="a folder"):
        storage.read_tensors(tmp_path)
    storage.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    with pytest.raises(UserError, match="no tensor 'b'"):
        storage.read_tensors(tmp_path / "a.safetensors", ["b"])


def test_json_and_hash(tmp_path: Path):
    storage.write_json(tmp_path / "new" / "a.json", {"ä": [1]})
    assert json.loads((tmp_path / "new" / "a.json").read_text("utf-8")) == {"ä": [1]}
    files.write_bytes(tmp_path / "b", b"abc")
    assert storage.sha256(tmp_path / "b").startswith("ba7816bf8f01cfea")
