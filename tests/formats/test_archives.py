"""PyTorch's files without what A1111 refuses."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch

from dreambooth_core.formats.archives import ALIGNMENT, write_archive

ALLOWED = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")
"""A1111's own rule (modules/safe.py)."""


def test_only_what_a1111_lets_through(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    value = {
        "state_dict": {"a": torch.arange(5), "b": torch.randn(3, 7).half(), "c": torch.ones(1)},
        "metadata": {"title": "ü"},
    }
    write_archive(path, value)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(ALLOWED.match(name) for name in archive.namelist())
    for mapped in (False, True):
        back = torch.load(path, weights_only=True, mmap=mapped)
        assert back["metadata"] == value["metadata"]
        for name, tensor in value["state_dict"].items():
            assert torch.equal(back["state_dict"][name], tensor)
            if mapped:
                assert back["state_dict"][name].untyped_storage().data_ptr() % ALIGNMENT == 0
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
