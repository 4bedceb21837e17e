"""Pickled checkpoints: tensors come out, code does not run."""

from __future__ import annotations

import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.pickles import is_pickle, read_pickle
from dreambooth_core.formats.storage import write_tensors


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
    for length in range(1, 1024):
        write_tensors(path, {"a": torch.zeros(1)}, {"note": "x" * length})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(path)
