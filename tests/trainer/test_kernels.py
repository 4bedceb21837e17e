"""Trials of attention kernels leave a run as it was, and what won serves it and the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import config_for, folder_for, training_of

from dreambooth_core.attention.fastest import Cost
from dreambooth_core.trainer import kernels


def test_the_fastest_attention_changes_nothing_that_is_learned(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method__dropout": 0.2, "run__output": tmp_path / "runs"}
    plain = config_for(base, pictures, tmp_path, **changes, run__name="plain")
    asked = config_for(
        base, pictures, tmp_path, **changes, run__name="asked", memory__attention="fastest"
    )
    trainings = [training_of(config, folder_for(config)) for config in (plain, asked)]
    found = []
    for training in trainings:
        with kernels.chosen(training):
            assert all(parameter.grad is None for parameter in training.stepper.parameters)
            found.append([training.train_step()[0].sum().item() for _ in range(2)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert (tmp_path / "runs" / ".cache" / "attention.json").is_file()

    def refuse(*_: object) -> Cost:
        raise AssertionError("it is known")

    monkeypatch.setattr(kernels, "_trial", refuse)
    with kernels.chosen(trainings[1]):
        pass


def test_what_won_is_what_a_run_attends_by(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def trial(_: object, name: str) -> Cost:
        tried.append(name)
        return Cost(1.0 if name == "efficient" else 2.0, 1)

    monkeypatch.setattr(kernels, "_trial", trial)
    config = config_for(base, pictures, tmp_path, memory__attention="fastest")
    training = training_of(config, folder_for(config))
    with kernels.chosen(training):
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert tried[:3] == ["flash", "cudnn", "efficient"]
