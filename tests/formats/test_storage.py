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
from safetensors.torch import load, load_file, save, save_file

from dreambooth_core import disk
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.formats import storage
from tests.helpers.mutations import mutated

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
    disk.write_text(path, "old")

    def broken() -> torch.Tensor:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        storage.write_tensors(path, {"a": storage.Lazy((1,), torch.float32, broken)})
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_the_way_and_a_file_as_folder(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SaveFailed, match="could not save: a folder"):
        disk.write_text(tmp_path / "taken", "x")
    with pytest.raises(SaveFailed, match="is a file, not a folder"):
        disk.write_text(tmp_path / "file" / "x.txt", "x")


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


def entry(dtype: str, shape: list, *place: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(place)}


def file_of(path: Path, header: object, data: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data)
    return path


GOOD = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": GOOD, "b": GOOD}, "overlaps"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F16", [1], 6, 8)}, "unused before"),
        ({"a": entry("F32", [1], 4, 8)}, "unused before"),
        ({"a": entry("F32", [1], 0, 4)}, "4 bytes follow"),
        ({"a": entry("F4", [2], 0, 8)}, "'F4', a type that is not handled"),
        ({"a": entry("F32", [2.0], 0, 8)}, "is none"),
        ({"a": entry("F32", [-2], 8, 0)}, "is none"),
        ({"a": entry("F32", [True, 2], 0, 8)}, "is none"),
        ({"a": entry("F32", [2**63], 0, 8)}, "is none"),
        ({"a": entry("F32", [2**62, 2**62], 0, 8)}, "bytes"),
        ({"a": entry("F32", [2], 0, 8, 16)}, "bytes"),
        ({"a": entry("F32", [1] * 40 + [2], 0, 8)}, "41 dimensions"),
        ({"a": {**GOOD, "more": 1}}, "not described"),
        ({"a": {"dtype": "F32"}}, "not described"),
        ({"a": GOOD, "__metadata__": {"k": 1}}, "not text"),
        ({"a": GOOD, "__metadata__": ["k"]}, "not text"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' * 1 + b'"a":{}}', "twice"),
        (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "surrogate"),
        (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "deeply"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header, reason):
    with pytest.raises(UserError, match=reason):
        storage.read_header(file_of(tmp_path / "a.safetensors", header))


def test_a_header_of_absurd_length_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((storage.MAX_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(storage.MAX_HEADER + 100)
    with pytest.raises(UserError, match="its header would have"):
        storage.read_header(path)


VALID = save(
    {"first": torch.ones(2, 3), "b.weight": torch.zeros(0), "c": torch.arange(4).half()},
    {"format": "pt"},
)


@settings(max_examples=250, deadline=None)
@given(mutated(VALID))
def test_what_is_read_is_what_the_library_reads(tmp_path_factory, data):
    """Whatever bytes are changed, it is refused in one way or read as safetensors itself does."""
    path = tmp_path_factory.mktemp("m") / "a.safetensors"
    path.write_bytes(data)
    try:
        found = storage.read_tensors(path)
    except UserError:
        return
    theirs = load(data)
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.shape == found[name].shape and tensor.dtype == found[name].dtype
        assert tensor.numpy().tobytes() == found[name].numpy().tobytes()


def test_missing_names_and_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        storage.read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="a folder"):
        storage.read_tensors(tmp_path)
    storage.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    with pytest.raises(UserError, match="no tensor 'b'"):
        storage.read_tensors(tmp_path / "a.safetensors", ["b"])


def test_json_and_hash(tmp_path: Path):
    disk.write_json(tmp_path / "new" / "a.json", {"ä": [1]})
    assert json.loads((tmp_path / "new" / "a.json").read_text("utf-8")) == {"ä": [1]}
    disk.write_bytes(tmp_path / "b", b"abc")
    assert disk.sha256(tmp_path / "b").startswith("ba7816bf8f01cfea")
