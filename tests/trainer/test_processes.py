"""Two processes learn what one with twice the batch learns; one of them writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import flow_bases
from helpers.processes import train_in_two
from helpers.runs import PRIOR, bare, config_for, folder_for, losses, train
from torch import Tensor

from dreambooth_core.commands.launch import Options, joined, launcher
from dreambooth_core.commands.main import _parser
from dreambooth_core.commands.options import from_arguments
from dreambooth_core.config.loading import dump, load
from dreambooth_core.devices import choose_device
from dreambooth_core.errors import TrainingFailed, UserError
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import Proposal, RunFolder, read_receipt, status
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.distributed import as_launched
from dreambooth_core.trainer.run import run

Runs = dict[tuple[str, str], RunFolder]

ENGINES = {"one": "no", "ddp": "no", "fsdp2": "full"}
"""What computes the same: one process, two with whole models, two with a piece each."""

SAVED = {"run__steps": 3, "save__every_steps": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "lora": {**PRIOR, **SAVED},
    "dora": {
        "method__train_text_encoder": "true",
        "run__gradient_accumulation_steps": 2,
        "optim__max_grad_norm": 0.001,
    },
    "full": {
        **SAVED,
        "optim__ema__enabled": "true",
        "validation__prompts": "[a ball]",
        "validation__num_inference_steps": 1,
    },
    "flow": {**PRIOR, "method__kind": "lora", "method__train_text_encoder": "false"},
}
"""What else has to agree between processes, each with one of the methods."""

KINDS: dict[str, dict[str, Any]] = {
    name: {"method__kind": name, "run__steps": 2, **SPECIAL.get(name, {})}
    for name in [*METHODS, "flow"]
}

ONCE = {
    "loha": "ddp",
    "lokr": "ddp",
    "oft": "ddp",
    "pivotal": "fsdp2",
    "textual_inversion": "ddp",
    "flow": "fsdp2",
}
"""What is tried with one of the two: its parameters lie in layers as another's, which is tried with
both. Both with ``--long``."""

PAIRS = [
    pytest.param(kind, engine, marks=[pytest.mark.long] if ONCE.get(kind, engine) != engine else [])
    for kind in KINDS
    for engine in ("ddp", "fsdp2")
]


@pytest.fixture(scope="module")
def runs(
    base: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Runs:
    """Each kind of run, by one process with a batch of two and by two with one image each."""
    every = request.config.getoption("--long")
    root = tmp_path_factory.mktemp("processes")
    sd1, flow = base, flow_bases.qwen_image(root / "qwen_image")
    found = {}
    for kind, special in KINDS.items():
        for engine, sharding in ENGINES.items():
            if not every and engine not in ("one", ONCE.get(kind, engine)):
                continue
            # One at a time in all: images made in another company differ in the last bit.
            changes = {**special, "prior__batch_size": 1, "run__sharding": sharding}
            changes["run__batch_size"] = 2 if engine == "one" else 1
            base = flow if kind == "flow" else sd1
            config = config_for(base, pictures, root / kind / engine, **changes)
            if engine == "one":
                with bare():
                    found[kind, engine] = train(config)
            else:
                found[kind, engine] = folder_for(config)
    # What one process saved, two resume with a piece each.
    resumed = shutil.copytree(found["full", "one"].path, root / "full" / "grown")
    found["full", "grown"] = resuming(RunFolder(resumed), run__sharding="full", run__batch_size=1)
    config = config_for(sd1, pictures, root / "dying", run__steps=3, save__every_steps=1)
    found["lora", "dying"] = folder_for(config)
    found["lora", "dying"].path.joinpath("dies").touch()
    several = [folder for (_, engine), folder in found.items() if engine != "one"]
    assert train_in_two(several) == [TrainingFailed.exit_code, 9]
    return found


@pytest.mark.parametrize(("kind", "engine"), PAIRS)
def test_two_processes_learn_what_one_learns(runs: Runs, kind: str, engine: str) -> None:
    alone, both = runs[kind, "one"], runs[kind, engine]
    single, double = losses(alone), losses(both)
    assert list(double) == list(range(1, KINDS[kind]["run__steps"] + 1))
    assert list(double.values()) == pytest.approx(list(single.values()), abs=1e-5)
    assert list(norms(both)) == pytest.approx(list(norms(alone)), abs=1e-5, rel=1e-4)
    assert status(both).state == "finished"
    first, second = (result(folder) for folder in (alone, both))
    assert first.keys() == second.keys()
    one, two = (torch.cat([t.flatten() for t in found.values()]) for found in (first, second))
    # Adam turns a gradient that is all rounding error into a whole step: a few may differ.
    assert (two - one).abs().lt(2e-5).double().mean() > 0.995


def resuming(folder: RunFolder, **changes: Any) -> RunFolder:
    """A run that is to resume from its step 2, and to that end is a folder of that time."""
    changes = {"run__resume": 2, **changes}
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    config = load(TrainConfig, files=[folder.config], overrides=overrides)
    folder.config.write_text(dump(config), encoding="utf-8")
    folder.control.mark_start(folder.events.size())
    return folder


def test_two_with_pieces_resume_what_one_saved(runs: Runs) -> None:
    grown, alone = runs["full", "grown"], runs["full", "one"]
    assert read_receipt(grown)["resumed_at"] == 2
    assert losses(grown)[3] == pytest.approx(losses(alone)[3], abs=1e-5)


def test_one_resumes_what_two_with_pieces_saved(runs: Runs, tmp_path: Path) -> None:
    alone = RunFolder(shutil.copytree(runs["full", "fsdp2"].path, tmp_path / "run"))
    with bare():
        run(resuming(alone, run__sharding="no", run__batch_size=2))
    assert read_receipt(alone)["resumed_at"] == 2
    assert losses(alone)[3] == pytest.approx(losses(runs["full", "one"])[3], abs=1e-5)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_one_of_two_writes_the_images(runs: Runs, engine: str) -> None:
    images = [
        sorted(path.name for path in runs["full", which].samples.iterdir())
        for which in ("one", engine)
    ]
    assert images[0] == images[1]
    assert len(images[0]) == 2


def test_a_process_that_dies_ends_the_other_with_one_line(runs: Runs) -> None:
    last = runs["lora", "dying"].events.read(0)[0][-1]
    assert last["kind"] == "error"
    assert "another process of this run has ended" in last["message"]
    assert list(saved_steps(runs["lora", "dying"].checkpoints)) == [1]


def test_each_process_holds_its_piece(runs: Runs) -> None:
    shares = [float((runs["full", "fsdp2"].path / f"held-{rank}").read_text()) for rank in (0, 1)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)
    assert not (runs["full", "ddp"].path / "held-0").exists()


def norms(folder: RunFolder) -> list[float]:
    """The norm of each step's gradients."""
    return [e["gradient_norm"] for e in folder.events if e.get("stage") == "train"]


def result(folder: RunFolder) -> dict[str, Tensor]:
    """What a run has written in the end: an adapter's changes, else the tensors themselves."""
    path = folder.path / read_receipt(folder)["result"]["file"]
    if identify(path).kind != "adapter":
        return {name: t for name, t in read_tensors(path).items() if t.is_floating_point()}
    weights = read_adapter(path).modules
    # DoRA's and OFT's changes depend on the base; their own numbers say as much.
    return {f"{name}.{k}": t for name, w in weights.items() for k, t in w.tensors().items()}


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_one_process_writes_and_both_make_class_images(runs: Runs, engine: str) -> None:
    alone, both = runs["lora", "one"], runs["lora", engine]
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


def test_another_engine_of_accelerates_is_answered_with_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"(?s)DeepSpeed.*run\.sharding"):
        as_launched(load(TrainConfig))


@pytest.mark.parametrize(("offloads", "sharding"), [("true", "offload"), ("false", "full")])
def test_what_accelerate_says_about_fsdp_is_done(
    offloads: str, sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", offloads)
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    found = as_launched(load(TrainConfig))
    assert found.run.sharding == sharding
    assert found.memory.gradient_checkpointing


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


MEETING = ["--nodes", "2", "--rendezvous", "10.0.0.1:29500"]


def test_each_of_several_machines_starts_its_processes() -> None:
    first = command("run.yaml", "--gpus", "0,1", *MEETING)
    at = ["--main_process_ip", "10.0.0.1", "--main_process_port", "29500"]
    assert first[1:7] == ["--num_machines", "2", "--machine_rank", "0", *at[:2]]
    assert first[7:] == [*at[2:], "--gpu_ids", "0,1", "--num_processes", "4", "--multi_gpu"]
    second = command("--join", "runs/dog", "--cpu", *MEETING, "--node-rank", "1")
    at = ["--master-addr", "10.0.0.1", "--master-port", "29500"]
    assert second[1:] == ["--nnodes", "2", "--node-rank", "1", *at, "--nproc-per-node", "2"]


def test_the_other_machines_join_the_run_or_its_new_settings(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "dog")
    folder.config.write_text("{}")
    assert joined(str(folder.path)) == (folder, None)
    proposal = Proposal.make(folder, {"config.yaml": "{}"})
    found, settings = joined(str(proposal.path))
    assert found == folder
    assert settings is not None
    assert settings.path == proposal.path


@pytest.mark.parametrize(
    "wrong",
    [
        ["--gpus", "one"],
        ["--gpus", "0,0"],
        ["--gpus", "0", "--cpu"],
        ["--gpus", "0,1", "--processes", "3"],
        ["--gpus", "0", "--nodes", "2"],
        ["--gpus", "0", "--nodes", "2", "--rendezvous", "here"],
        [*MEETING],
        ["--gpus", "0", *MEETING, "--node-rank", "1"],
        ["--gpus", "0", *MEETING, "--join", "runs/dog"],
        ["--gpus", "0", *MEETING, "--join", "runs/dog", "--node-rank", "2"],
        ["--rendezvous", "10.0.0.1:29500"],
    ],
)
def test_what_cannot_be_launched_is_named(wrong: list[str]) -> None:
    with pytest.raises(UserError):
        command(*wrong)
