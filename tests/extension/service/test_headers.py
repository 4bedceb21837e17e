"""Files in the Lora folder come from everywhere; none of them may break the list of all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from extension.service.headers import metadata_of, names_of, version_of
from extension.service.records import read_json


def written(path: Path, header: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", b'{"__metadata__": {"ss_v2": "True"}, "w": {}}')
    assert metadata_of(file) == {"ss_v2": "True"}
    assert names_of(file) == {"w"} and version_of(file) == "SD2"


@pytest.mark.parametrize("header", [b"[" * 100_000, b"[1]", b'{"a": NaN}', b"\xff", b""])
def test_a_damaged_header_says_nothing(tmp_path: Path, header: bytes) -> None:
    file = written(tmp_path / "a.safetensors", header)
    assert metadata_of(file) == {} and names_of(file) == set()
    file.write_bytes(header)
    assert read_json(file) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    assert metadata_of(tmp_path / "a.safetensors") == {} == read_json(tmp_path / "a.safetensors")
