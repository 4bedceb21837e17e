"""Checkpoints as folders: which stay, which are brought back, which could be deleted."""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth_core.jobs.checkpoints import (
    is_rolling,
    name_of,
    prune,
    removable,
    remove_rolling,
    saved_steps,
)


def checkpoint(root: Path, step: int, *, rolling: bool = False, size: int = 0) -> Path:
    path = root / name_of(step)
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"rolling": True} if rolling else {}))
    (path / "trained.safetensors").write_bytes(bytes(size))
    return path


def test_a_rolling_one_is_replaced_by_whatever_is_newer(tmp_path: Path) -> None:
    for step in (10, 30, 50):
        checkpoint(tmp_path, step)
    for step in (20, 40, 60):
        checkpoint(tmp_path, step, rolling=True)
    prune(tmp_path, keep=2)
    assert list(saved_steps(tmp_path)) == [30, 50, 60]
    checkpoint(tmp_path, 70)
    prune(tmp_path, keep=None)
    assert list(saved_steps(tmp_path)) == [30, 50, 70]


def test_the_rolling_one_goes_when_the_run_is_done(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, rolling=True)
    remove_rolling(tmp_path)
    assert list(saved_steps(tmp_path)) == [10]


def test_the_newest_of_each_run_is_not_offered_for_deletion(tmp_path: Path) -> None:
    for run, sizes in {"cat": (5000, 100), "dog": (300, 9000, 200)}.items():
        for number, size in enumerate(sizes, 1):
            checkpoint(tmp_path / run / "checkpoints", number * 10, size=size)
    found = removable(tmp_path, tmp_path / "dog")
    assert [one.path.relative_to(tmp_path).as_posix() for one in found] == [
        "dog/checkpoints/step-000020",
        "cat/checkpoints/step-000010",
        "dog/checkpoints/step-000010",
    ]
    assert found[0].size >= 9000


def test_a_manifest_of_brackets_is_none(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 10)
    (path / "state.json").write_text("[" * 100_000)
    assert not is_rolling(path)
