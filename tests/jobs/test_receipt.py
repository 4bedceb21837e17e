"""A receipt is a file that anybody may have written: what it says of a result is looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_made, read_receipt

GOOD = {"file": "run.safetensors", "steps": 7}


def receipt(root: Path, **facts: Any) -> RunFolder:
    folder = RunFolder.create(root, "run")
    folder.receipt.write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_what_was_made(tmp_path: Path) -> None:
    learned = {**GOOD, "embedding": "sks.safetensors", "token": "sks"}
    folder = receipt(tmp_path, result=learned, base={"commit": "abc"})
    made = read_made(folder)
    assert made.file == folder.path / "run.safetensors" and made.steps == 7
    assert made.embedding == folder.path / "sks.safetensors" and made.token == "sks"
    assert made.commit == "abc"
    # One layout has its results beside the run.
    beside = receipt(tmp_path, result={**GOOD, "file": str(tmp_path / "400")})
    assert read_made(beside).file == tmp_path / "400"


@pytest.mark.parametrize(
    "facts",
    [
        {"result": [1]},
        {"result": None},
        {"result": {**GOOD, "file": 7}},
        {"result": {**GOOD, "file": "/etc/passwd"}},
        {"result": {**GOOD, "file": "../../other/run.safetensors"}},
        {"result": {**GOOD, "file": "a\0b"}},
        {"result": {**GOOD, "steps": "many"}},
        {"result": {**GOOD, "embedding": 7, "token": "x"}},
        {"result": {**GOOD, "embedding": "a"}},
        {"result": GOOD, "base": [1]},
        {"result": GOOD, "base": {"commit": 7}},
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the receipt of this run is damaged"):
        read_made(receipt(tmp_path, **facts))


def test_a_run_without_a_result_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result yet"):
        read_made(RunFolder.create(tmp_path, "run"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_only_files_are_read_in_a_runs_folder(tmp_path: Path) -> None:
    """A pipe would be waited for."""
    folder = RunFolder.create(tmp_path, "run")
    for path in (folder.receipt, folder.events_file, folder.control_file, folder.lock_file):
        os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe, not a file"):
        read_receipt(folder)
    assert list(folder.events) == [] and not folder.lock.is_held()
    assert folder.control.last_start() == (None, None)
