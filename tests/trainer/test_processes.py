"""Two processes learn what one with twice the batch learns; one of them writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import PRIOR, config_for, folder_for, losses, train

from dreambooth_core.commands.launch import launcher
from dreambooth_core.commands.main import _parser
from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.jobs import RunFolder, status
from dreambooth_core.trainer.processes import choose_device, join

ROOT = Path(__file__).parents[2]


def train_twice(folder: RunFolder) -> None:
    """The run in two processes, as torch's launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environ = {**os.environ, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-m", "dreambooth_core.worker", str(folder.path)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environ))
    assert [process.wait(900) for process in started] == [0, 0]


def test_two_processes_learn_what_one_learns(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {**PRIOR, "run__steps": 3, "save__every_steps": 2}
    # One at a time in both: pictures made in another company differ in the last bit.
    changes["prior__batch_size"] = 1
    alone = train(config_for(base, pictures, tmp_path / "alone", run__batch_size=2, **changes))
    both = folder_for(config_for(base, pictures, tmp_path / "both", run__batch_size=1, **changes))
    train_twice(both)
    one, two = losses(alone), losses(both)
    assert list(two) == [1, 2, 3]
    assert [two[step] for step in two] == pytest.approx([one[step] for step in one], abs=1e-5)
    assert sum(event["kind"] == "finished" for event in both.events) == 1
    made = [
        sorted(p.name for p in (root / ".class_images").rglob("*.png"))
        for root in (alone.path.parent, both.path.parent)
    ]
    assert made[0] == made[1]
    assert len(made[0]) == 3
    results = [sorted(p.name for p in f.path.glob("*.safetensors")) for f in (alone, both)]
    assert results[0] == results[1]
    assert results[0] == ["run-000002.safetensors", "run.safetensors"]
    first, second = (read_adapter(f.path / "run.safetensors").modules for f in (alone, both))
    for name, weights in first.items():
        torch.testing.assert_close(weights.delta(None), second[name].delta(None), atol=1e-5, rtol=0)
    assert status(both).state == "finished"


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_sharding_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"(?i){name}"):
        join("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device("cuda", rank).index for rank in range(3)] == [0, 1, 2]
    assert choose_device("cuda:1", 0).index == 1


def command(*arguments: str) -> list[str]:
    return launcher(_parser("launch").parse_args(["launch", *arguments]))[2:]


def test_the_launcher_gets_what_was_asked_for() -> None:
    accelerate = "accelerate.commands.launch"
    assert command("run.yaml") == [accelerate]
    several = [accelerate, "--gpu_ids", "0,1,2,3", "--num_processes", "4", "--multi_gpu"]
    assert command("--gpus", "0,1,2,3", "run.yaml") == several
    assert command("--config-file", "a.yaml") == [accelerate, "--config_file", "a.yaml"]
    assert command("--cpu", "--processes", "3")[-1] == "3"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--gpus", "one"],
        ["--gpus", "0,0"],
        ["--gpus", "0", "--cpu"],
        ["--gpus", "0,1", "--processes", "3"],
    ],
)
def test_what_cannot_be_launched_is_named(wrong: list[str]) -> None:
    with pytest.raises(UserError):
        command(*wrong)
