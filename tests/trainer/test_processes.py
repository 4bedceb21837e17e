"""Two processes learn what one with twice the batch learns; one of them writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import flow_bases
from helpers.processes import train_in_two
from helpers.runs import PRIOR, bare, config_for, folder_for, losses, train
from torch import Tensor

from dreambooth_core.commands.launch import Options, launcher
from dreambooth_core.commands.main import _parser
from dreambooth_core.commands.options import from_arguments
from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.detect import identify
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder, read_receipt, status
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer.processes import choose_device, join

Pairs = dict[str, tuple[RunFolder, RunFolder]]

KINDS: dict[str, dict[str, Any]] = {
    "prior": PRIOR,
    "text": {"method__train_text_encoder": "true"},
    "ema": {"method__kind": "full", "optim__ema__enabled": "true"},
    "flow": {**PRIOR, "method__train_text_encoder": "false"},
    **{kind: {"method__kind": kind} for kind in METHODS},
}
"""Every method, and what else has to agree between processes."""


@pytest.fixture(scope="module")
def pairs(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Each kind of run, by one process with a batch of two and by two with one picture each."""
    root = tmp_path_factory.mktemp("processes")
    sd1, flow = base, flow_bases.qwen_image(root / "qwen_image")
    found = {}
    for kind, special in KINDS.items():
        changes = {"run__steps": 3, "save__every_steps": 2, **special}
        base = flow if kind == "flow" else sd1
        # One at a time in both: pictures made in another company differ in the last bit.
        changes["prior__batch_size"] = 1
        with bare():
            config = config_for(base, pictures, root / kind / "1", run__batch_size=2, **changes)
            alone = train(config)
        config = config_for(base, pictures, root / kind / "2", run__batch_size=1, **changes)
        found[kind] = (alone, folder_for(config))
    train_in_two([both for _, both in found.values()])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(pairs: Pairs, kind: str) -> None:
    alone, both = pairs[kind]
    single, double = losses(alone), losses(both)
    assert list(double) == [1, 2, 3]
    assert list(double.values()) == pytest.approx(list(single.values()), abs=1e-5)
    assert status(both).state == "finished"
    first, second = (result(folder) for folder in (alone, both))
    assert first.keys() == second.keys()
    one, two = (torch.cat([t.flatten() for t in found.values()]) for found in (first, second))
    # Adam turns a gradient that is all rounding error into a whole step: a few may differ.
    assert (two - one).abs().lt(2e-5).double().mean() > 0.995


def result(folder: RunFolder) -> dict[str, Tensor]:
    """What a run has written in the end: an adapter's changes, else the tensors themselves."""
    path = folder.path / read_receipt(folder)["result"]["file"]
    if identify(path).kind != "adapter":
        return {name: t for name, t in read_tensors(path).items() if t.is_floating_point()}
    weights = read_adapter(path).modules
    # DoRA's and OFT's changes depend on the base; their own numbers say as much.
    return {f"{name}.{k}": t for name, w in weights.items() for k, t in w.tensors().items()}


def test_one_process_writes_and_both_make_class_images(pairs: Pairs) -> None:
    alone, both = pairs["prior"]
    assert sum(event["kind"] == "finished" for event in both.events) == 1
    made = [
        sorted(p.name for p in (folder.path.parent / ".class_images").rglob("*.png"))
        for folder in (alone, both)
    ]
    assert made[0] == made[1]
    assert len(made[0]) == 3
    results = [sorted(p.name for p in f.path.glob("*.safetensors")) for f in (alone, both)]
    assert results[0] == results[1]
    assert results[0] == ["run-000002.safetensors", "run.safetensors"]


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_sharding_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match=f"(?i){name}"):
        join("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [choose_device("cuda", rank).index for rank in range(3)] == [0, 1, 2]
    assert choose_device("cuda:1", 0).index == 1


def command(*arguments: str) -> list[str]:
    args = _parser("launch").parse_args(["launch", *arguments])
    return launcher(from_arguments(Options, args))[2:]


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
