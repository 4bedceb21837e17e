"""Numbers stay on the device until they are read, all at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import PRIOR, config_for, folder_for, training_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreambooth_core.errors import TrainingFailed
from dreambooth_core.memory.measure import Peak
from dreambooth_core.trainer.distributed import Processes, backend_for
from dreambooth_core.trainer.reports import MOST_WAITING, Window
from dreambooth_core.trainer.train import Training

NOWHERE = torch.device("meta")
"""A device without data: whoever reads a number of it fails."""


class NoDoubles(TorchDispatchMode):
    """Apple's GPUs know no float64: refuses it on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else [out]:
            if isinstance(value, Tensor) and value.device == NOWHERE:
                assert value.dtype != torch.float64, f"{func} made float64 on the device"
        return out


@pytest.fixture(scope="module")
def built(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A training whose trained models, and all that is computed with them, hold no data."""
    config = config_for(
        base,
        pictures,
        tmp_path_factory.mktemp("nowhere"),
        run__gradient_accumulation_steps=2,
        log__every_steps=10_000,
        objective__loss="huber",
        **PRIOR,
    )
    folder = folder_for(config)
    training = training_of(config, folder)
    training.parts.denoiser.to(NOWHERE)
    training.processes = training.window.processes = Processes(0, 1, NOWHERE)
    training.precision.device = NOWHERE
    training.watch.peak = Peak(0, "nowhere")
    trained = [p for p in training.parts.denoiser.parameters() if p.requires_grad]
    (group,) = training.stepper.optimizer.param_groups
    group.update(params=trained, fused=False)
    return training


@pytest.fixture
def nowhere(built: Training) -> Training:
    """The same at its first step."""
    built.step, built.total_steps = 0, 10_000
    built.window = replace(window(), processes=built.processes)
    return built


def test_no_step_waits_for_the_device_or_wants_float64_of_it(nowhere: Training) -> None:
    nowhere.total_steps = 3
    with NoDoubles(), pytest.raises(NotImplementedError):
        nowhere.train()  # what the last step reports cannot be read
    assert nowhere.step == 3


def numbers(*values: float) -> Tensor:
    return torch.tensor([values])


def window(scaled: bool = False) -> Window:
    return Window(Processes(0, 1, torch.device("cpu")), prior_weight=0.5, scaled=scaled)


def test_what_is_read_is_each_steps_sum_and_the_mean_of_them() -> None:
    own = window()
    own.add(1, torch.cat([numbers(1, 0.5, 1), numbers(2, 1.5, 1)]), torch.tensor(3.0))
    own.add(2, numbers(5, 4, 2), torch.tensor(4.0))
    own.settle()
    own.add(3, torch.zeros(0, 3), None)
    own.seconds = 6.0
    assert own.report() == {
        "loss": 8 / 3,
        "instance_loss": 2.0,
        "class_loss": 4 / 3,
        "prior_share": (1 / 3 + 1 / 5) / 3,
        "seconds_per_step": 2.0,
        "gradient_norm": None,
    }
    assert own.waiting == 0


def test_the_step_that_went_wrong_is_named() -> None:
    own = window()
    own.add(7, numbers(1, 1, 0), torch.tensor(1.0))
    own.add(8, numbers(float("nan"), 1, 0), torch.tensor(1.0))
    own.add(9, numbers(1, 1, 0), torch.tensor(1.0))
    with pytest.raises(TrainingFailed, match="loss of step 8"):
        own.settle()
    own = window()
    own.add(8, numbers(1, 1, 0), torch.tensor(float("inf")))
    with pytest.raises(TrainingFailed, match="gradients of step 8"):
        own.settle()
    own = window()
    own.add(1, numbers(1, 1, 0), torch.tensor(0.0))
    with pytest.raises(TrainingFailed, match="no gradient arrives"):
        own.settle()
    # fp16's scaler skips such a step by itself.
    own = window(scaled=True)
    own.add(8, numbers(1, 1, 0), torch.tensor(float("inf")))
    own.settle()


def test_nothing_that_diverged_is_saved(nowhere: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(nowhere.trained, "save", saved.append)
    nowhere.window.add(1, numbers(float("nan"), 1, 0), None)
    nowhere.step = 1
    with pytest.raises(TrainingFailed):
        nowhere.save()
    assert not saved


def test_a_run_that_diverged_ends_though_nothing_is_reported(
    nowhere: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged() -> tuple[Tensor, None]:
        nowhere.step += 1
        return numbers(float("nan"), 1, 0), None

    monkeypatch.setattr(nowhere, "train_step", diverged)
    with pytest.raises(TrainingFailed, match="loss of step 1 "):
        nowhere.train()
    assert nowhere.step == MOST_WAITING


def test_what_is_summed_lies_on_the_process_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", seen.append)
    processes = Processes(0, 2, NOWHERE)
    with pytest.raises(NotImplementedError):  # what comes back from nowhere cannot be read
        processes.sum(torch.ones(2, 3, dtype=torch.float64))
    assert [(t.device, t.dtype) for t in seen] == [(NOWHERE, torch.float32)]
    here = torch.ones(2, dtype=torch.float64)
    assert Processes(0, 2, torch.device("cpu")).sum(here) is not here
    assert seen[-1].dtype == torch.float64


def test_gpus_talk_through_their_own_library_and_words_through_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "nccl")
    assert backend_for(torch.device("cuda:1")) == "cpu:gloo,cuda:nccl"
    assert backend_for(torch.device("xpu:0")) == "gloo"
    assert backend_for(torch.device("cpu")) == "gloo"
