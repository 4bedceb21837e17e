"""Trials of attention kernels leave a run as it was, and what won serves it and the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import config_for, folder_for, training_of

from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.trainer import kernels
from dreambooth_core.trainer.kernels import Cost, arrange, frozen_convolutions
from dreambooth_core.trainer.train import Training


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


def convolutions(training: Training) -> list[torch.Tensor]:
    found = (m for m in training.parts.denoiser.modules() if isinstance(m, torch.nn.Conv2d))
    return [conv.weight for conv in found if conv.kernel_size != (1, 1)]


def lies_last(weight: torch.Tensor) -> bool:
    return weight.stride(1) == 1 and weight.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_lie_as_asked_and_compute_the_same(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    found = {}
    for choice in ("off", "on", "auto"):
        changes = {"run__name": choice, "memory__channels_last": choice}
        config = config_for(base, pictures, tmp_path, **changes)
        training = training_of(config, folder_for(config))
        with kernels.chosen(training):
            found[choice] = [training.train_step()[0].sum().item() for _ in range(2)]
        weights = convolutions(training)
        assert len(weights) > 4
        assert {lies_last(weight) for weight in weights} == {choice == "on"}
        # What tells the base that is kept for the next run does not see the order.
        training.method.detach()
        assert fingerprint(*training.parts.models.values()) == training.untouched
    assert found["on"] == pytest.approx(found["off"], rel=1e-4)
    assert found["auto"] == found["off"]


def test_the_faster_order_is_kept(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def trial(_: object, name: str) -> Cost:
        tried.append(name)
        return Cost(1.0 if name == "channels_last" else 2.0, 1)

    config = config_for(base, pictures, tmp_path)
    training = training_of(config, folder_for(config))
    assert not kernels._may_gain(training), "this is no GPU"
    monkeypatch.setattr(kernels, "_trial", trial)
    monkeypatch.setattr(kernels, "_may_gain", lambda _: True)
    for _ in range(2):
        arrange(frozen_convolutions(training.parts.denoiser), "contiguous")
        kernels.lay_out(training)
        assert all(lies_last(weight) for weight in convolutions(training))
    assert tried == ["contiguous", "channels_last"]


def test_a_trial_of_an_order_leaves_no_gradient(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = config_for(base, pictures, tmp_path)
    training = training_of(config, folder_for(config))
    assert kernels._trial(training, "channels_last").seconds > 0
    assert all(lies_last(weight) for weight in convolutions(training))
    assert all(parameter.grad is None for parameter in training.stepper.parameters)


def test_what_is_trained_keeps_its_order(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"method__kind": "full", "memory__channels_last": "on"}
    config = config_for(base, pictures, tmp_path, **changes)
    training = training_of(config, folder_for(config))
    kernels.lay_out(training)
    assert not any(lies_last(weight) for weight in convolutions(training))
