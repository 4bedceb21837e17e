"""Memory: estimated, measured beside it, and what a run that had too little says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import PRIOR, config_for, folder_for, go_on, losses, train

from dreambooth_core.commands.main import main
from dreambooth_core.config.loading import load
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.jobs import read_receipt
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.memory import measure
from dreambooth_core.memory.advice import cheaper, is_out_of_memory, next_measure
from dreambooth_core.memory.budget import changed_config
from dreambooth_core.memory.measure import Peak, Room
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.memory import GIB
from dreambooth_core.trainer.train import Training
from dreambooth_core.worker import supervise


def test_estimate_needs_no_weights(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"base.model={base}", f"run.output={tmp_path}", "run.device=cuda"]
    assert main(["estimate", *arguments, "--limit", "8", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert small["fits"]
    assert small["peak"] == max(small["training_peak"], small["encoding"])
    assert main(["estimate", *arguments, "method.kind=full", "--limit", "0.1", "--json"]) == 1
    large = json.loads(capsys.readouterr().out)
    assert large["gradients"] > small["gradients"] > 0
    assert large["optimizer"] == pytest.approx(2 * large["gradients"], rel=0.01)
    assert not large["fits"]


def test_events_tell_estimate_and_measured_peak(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"run__presets": "{mine: '3'}", "run__steps": 2}
    folder = train(config_for(base, pictures, tmp_path, **changes), decorated=True)
    steps = [e for e in folder.events if e.get("stage") == "train"]
    assert steps[0]["measured_bytes"] > 0
    assert steps[0]["measured_on"] == "process"
    assert steps[0]["estimated_bytes"] > 0
    assert "measured_bytes" not in steps[1]
    receipt = read_receipt(folder)
    assert receipt["presets"] == {"mine": "3"}
    told = {
        "budget": "auto",
        **{k: v for k, v in steps[0].items() if k.endswith(("_bytes", "_on"))},
    }
    assert receipt["memory"] == told


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_ends_cleanly_and_says_what_would_fit(
    error: BaseException,
    base: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path, save__every_steps=1, run__steps=3))
    backward = Training.backward

    def fails(self: Training, step: int) -> Any:
        if step == 2:
            raise error
        return backward(self, step)

    monkeypatch.setattr(Training, "backward", fails)
    assert supervise(folder) == 1
    last = list(folder.events)[-1]
    assert last["kind"] == "error"
    for words in ("out of memory", "step 2 is saved", "run.mixed_precision=bf16", "run.resume"):
        assert words in last["message"]
    assert list(saved_steps(folder.checkpoints)) == [1, 2]
    monkeypatch.undo()
    go_on(folder, memory__gradient_checkpointing="true")
    assert max(losses(folder)) == 3


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_advice_is_in_order_and_ends_where_it_fits(pictures: Path, tmp_path: Path) -> None:
    changes = {"data__resolution": 512, "method__kind": "full", "run__device": "cuda"}
    config = config_for(tmp_path, pictures, tmp_path, run__mixed_precision="bf16", **changes)
    configs = stock_configs("sd1")
    planner = Planner(config, configs)
    assert cheaper(planner, 40 * GIB) == []
    ways = cheaper(planner, 9 * GIB)
    assert [way.words for way in ways][:2] == [
        "optim.optimizer=adamw8bit",
        "memory.gradient_checkpointing=true",
    ]
    peaks = [planner.needs().peak, *(way.needs.peak for way in ways)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] <= 9 * GIB < peaks[-2]


def test_class_images_in_fp32_need_whole_weights(pictures: Path, tmp_path: Path) -> None:
    changes = {**PRIOR, "run__mixed_precision": "bf16", "run__device": "cuda"}
    config = config_for(tmp_path, pictures, tmp_path, **changes)
    planner = Planner(config, stock_configs("sd1"))
    before = planner.needs().class_images
    config.prior.precision = "bf16"
    assert planner.changed(config).needs().class_images == before
    config.prior.precision = "fp32"
    more = planner.changed(config).needs().class_images - before
    # 860 million weights of the UNet and 123 million of the text encoder, 2 bytes more each.
    assert more == pytest.approx(2 * 983e6, rel=0.01)


def watching(*, free: float, windows: bool, monkeypatch: pytest.MonkeyPatch) -> measure.MemoryWatch:
    """On a GPU of 8 GiB, of which a share is free."""
    room = Room(free=int(8 * GIB * free), total=8 * GIB)
    monkeypatch.setattr(measure, "room", lambda device: room)
    return measure.MemoryWatch(torch.device("cuda"), lambda: "Take less.", windows=windows)


@pytest.mark.parametrize("windows", [True, False])
def test_a_full_gpu_is_told_once(monkeypatch: pytest.MonkeyPatch, windows: bool) -> None:
    full = watching(free=0.01, windows=windows, monkeypatch=monkeypatch)
    said = [full.alarm(seconds) for seconds in (1.0, 1.0, 20.0)]
    assert said[0] is not None and said[1:] == [None, None]
    assert said[0].startswith("the GPU's memory is full")
    assert ("Windows uses RAM" in said[0]) == windows
    assert said[0].endswith("Take less.")
    roomy = watching(free=0.5, windows=windows, monkeypatch=monkeypatch)
    assert [roomy.alarm(s) for s in (1, 1, 1, 1, 1, 1, 20)] == [None] * 7


def test_a_step_that_begins_to_spill_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alarmed = watching(free=0.5, windows=True, monkeypatch=monkeypatch)
    assert [alarmed.alarm(1.0) for _ in range(6)] == [None] * 6
    monkeypatch.setattr(measure, "room", lambda device: Room(free=GIB // 100, total=8 * GIB))
    said = alarmed.alarm(20.0)
    assert said is not None and "20 times longer" in said
    assert alarmed.alarm(30.0) is None


def test_what_the_allocator_holds_in_vain_is_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    holding = watching(free=0.01, windows=True, monkeypatch=monkeypatch)
    holding.peak = Peak(peak=4 * GIB, reserved=7 * GIB, on="cuda")
    assert holding.alarm(1.0) is None


def test_the_alarm_names_the_next_cheaper_setting() -> None:
    config = load(TrainConfig, overrides=["data.resolution=512", "run.mixed_precision=bf16"])
    said = next_measure(config, torch.device("cuda"), stock_configs("sd1"))
    assert "memory.gradient_checkpointing=true" in said
    assert "less (steps take about a third longer)" in said


def test_what_was_traced_is_not_traced_again(base: Path) -> None:
    config = load(TrainConfig, overrides=[f"base.model={base.as_posix()}", "data.resolution=64"])
    first, again = Planner(config), Planner(config)
    assert again.base is first.base
    assert again.needs() == first.needs()
    for key, value in {"method.rank": 2, "run.batch_size": 2, "data.resolution": 128}.items():
        other = Planner(changed_config(config, {key: value}))
        assert other.base is not first.base and other.needs() != first.needs()
    cheaper = changed_config(config, {"memory.gradient_checkpointing": True})
    assert first.changed(cheaper).base is first.base
    assert Planner(config, device="cuda").base is not first.base
