"""Steps in one go equal some steps, an interruption and the rest, to the bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import flow_bases
from helpers.runs import PRIOR, bare, config_for, folder_for, go_on, losses, train

from dreambooth_core.commands.main import main
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder, read_receipt, status
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer.results import Results
from dreambooth_core.trainer.run import run
from dreambooth_core.trainer.state import TrainState, load_state, save_state

OPTIONS: dict[str, dict[str, Any]] = {
    "prior": PRIOR,
    "buckets": {"data__crop": "bucket", "data__bucket_reso_steps": 32},
    "accumulation": {"run__gradient_accumulation_steps": 2, "run__batch_size": 1},
    "dropout": {"method__dropout": 0.2, "data__caption_dropout_rate": 0.3, "data__flip": "true"},
    "schedule": {"optim__lr_scheduler": "cosine", "optim__lr_warmup_steps": 2},
    "ema": {"optim__ema__enabled": "true", "optim__ema__decay": 0.9},
    "8bit": {"optim__optimizer": "adamw8bit"},
}


def assert_equal_state(first: RunFolder, second: RunFolder, step: int) -> None:
    states = [load_state(saved_steps(f.checkpoints)[step]) for f in (first, second)]
    assert states[0].weights.keys() == states[1].weights.keys()
    for name, tensor in states[0].weights.items():
        assert torch.equal(tensor, states[1].weights[name]), name
    assert_same(states[0].states, states[1].states)


def assert_same(first: Any, second: Any) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_resumes_exactly(
    base: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    check(base, pictures, tmp_path, {"method__kind": kind})


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_resumes_exactly(
    base: Path, pictures: Path, tmp_path: Path, option: str
) -> None:
    interrupted = option == "prior"
    check(base, pictures, tmp_path, OPTIONS[option], interrupted=interrupted)


def test_a_whole_model_with_class_images_resumes_exactly(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    check(base, pictures, tmp_path, {"method__kind": "full", **PRIOR}, interrupted=True)


def test_a_whole_model_with_kept_answers_resumes_exactly(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    preserved = {"prior__enabled": "true", "prior__source": "prediction"}
    few = {"prior__num_class_images": 2}
    check(base, pictures, tmp_path, {"method__kind": "full", **preserved, **few})


def test_a_trained_text_encoder_resumes_exactly(base: Path, pictures: Path, tmp_path: Path) -> None:
    check(base, pictures, tmp_path, {"method__train_text_encoder": "true"})


FLOWS: dict[str, tuple[str, str]] = {
    "z_image": ("lokr", "prior"),
    "chroma": ("dora", "dropout"),
    "qwen_image": ("loha", "buckets"),
    "sd3": ("full", "schedule"),
    "lumina2": ("oft", "accumulation"),
    "anima": ("lora", "ema"),
}
"""Families with one method and one option each; together all of them."""
MORE_FLOWS: dict[str, tuple[str, str]] = {
    "flux2_klein": ("lora", "buckets"),
    "flux": ("full", "ema"),
    "krea2": ("lora", "prior"),
    "sana": ("lora", "accumulation"),
}
"""Families whose loop is one of those above: with ``--long`` alone."""


@pytest.mark.parametrize(
    "family", [*FLOWS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_FLOWS)]
)
def test_a_rectified_flow_model_resumes_exactly(
    family: str, pictures: Path, tmp_path: Path
) -> None:
    kind, option = {**FLOWS, **MORE_FLOWS}[family]
    changes = {"method__kind": kind, "method__train_text_encoder": "false", **OPTIONS[option]}
    base = flow_bases.WRITERS[family](tmp_path / "base")
    check(base, pictures, tmp_path / "runs", changes)


def check(
    base: Path,
    pictures: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    *,
    interrupted: bool = False,
) -> None:
    """A run, and one that resumes from its first checkpoint of two: a copy of it, or one that was
    interrupted, whose first checkpoint comes a step later."""
    every = 2 if interrupted else 1
    steps = 2 * every + 1
    config = config_for(
        base, pictures, tmp_path, save__every_steps=every, run__steps=steps, **changes
    )
    whole = train(config)
    if interrupted:
        # The schedule needs the whole length from the start: the first part is stopped, not short.
        config.run.name = "parts"
        parts = interrupted_after(config, every)
        assert max(saved_steps(parts.checkpoints)) == every
        go_on(parts, run__resume="latest")
    else:
        parts = RunFolder(shutil.copytree(whole.path, tmp_path / "parts"))
        shutil.rmtree(saved_steps(parts.checkpoints)[2 * every])
        place = parts.path / read_receipt(parts)["result"]["file"]
        place.unlink() if place.is_file() else shutil.rmtree(place)
        go_on(parts, run__resume="latest")
    assert read_receipt(parts)["resumed_at"] == every
    assert losses(whole) == losses(parts)
    assert len(set(losses(whole).values())) == steps
    assert_equal_state(whole, parts, 2 * every)
    result, again = (result_of(folder) for folder in (whole, parts))
    assert result.keys() == again.keys()
    assert all(torch.equal(result[name], again[name]) for name in result)


def result_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    """The tensors of a run's result; of a whole model without a file its denoiser's."""
    place = folder.path / read_receipt(folder)["result"]["file"]
    if place.is_dir():
        (place,) = (place / "transformer").glob("*.safetensors")
    return read_tensors(place)


def interrupted_after(config: Any, step: int) -> RunFolder:
    """Runs until ``step`` is saved, then stops in the middle of the next one."""
    folder = folder_for(config)

    def stop(event: dict[str, Any]) -> None:
        if event.get("stage") == "train" and event["step"] == step + 1:
            folder.control.request("stop_without_saving")

    with pytest.raises(Stopped), bare():
        run(folder, on_event=stop)
    return folder


def test_the_learning_rate_may_change(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = config_for(base, pictures, tmp_path, save__every_steps=2)
    folder = interrupted_after(config, 2)
    go_on(folder, optim__learning_rate=5e-4)
    rates = {e["step"]: e["lr"] for e in folder.events if e.get("stage") == "train"}
    assert rates[1] == 1e-3
    assert rates[4] == 5e-4


def test_the_rank_may_not_change(base: Path, pictures: Path, tmp_path: Path) -> None:
    config = config_for(base, pictures, tmp_path, save__every_steps=2)
    folder = interrupted_after(config, 2)
    with pytest.raises(UserError, match=r"rank was 4 and is now 8"):
        go_on(folder, method__rank=8)


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = train(config_for(base, pictures, tmp_path, save__every_steps=1, run__steps=3))
    file = saved_steps(folder.checkpoints)[2] / "trained.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"step-000002: .* damaged .*run\.resume=1"):
        go_on(folder, run__steps=4)
    if hasattr(os, "mkfifo"):  # is not waited for
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UserError, match=r"damaged \(trained.safetensors is not there\)"):
            go_on(folder, run__steps=4)
    go_on(folder, run__resume=1, run__steps=3)
    assert max(losses(folder)) == 3


def test_only_the_newest_checkpoints_are_kept(base: Path, pictures: Path, tmp_path: Path) -> None:
    """And with them the results of their steps; the last result stays."""
    changes = {"save__every_steps": 1, "save__keep": 2, "run__steps": 5}
    folder = train(config_for(base, pictures, tmp_path, method__kind="full", **changes))
    assert list(saved_steps(folder.checkpoints)) == [3, 4]
    files = {"run.safetensors", "run-000003.safetensors", "run-000004.safetensors"}
    assert {path.name for path in folder.path.glob("*.safetensors")} == files
    assert not (folder.path / "run-000002").exists()
    assert (folder.path / "run-000003" / "unet").is_dir()
    assert set(status(folder).results) == files


def test_a_finished_run_goes_on(base: Path, pictures: Path, tmp_path: Path) -> None:
    """With a checkpoint at the end, more steps equal a run that had them from the start."""
    more = {"save__at_end": "true"}
    whole = train(config_for(base, pictures, tmp_path / "whole", run__steps=4, **more))
    part = train(config_for(base, pictures, tmp_path / "part", run__steps=2, **more))
    assert list(saved_steps(part.checkpoints)) == [2]
    assert [p.name for p in part.path.glob("*.safetensors")] == ["run.safetensors"]
    go_on(part, run__steps=4)
    assert_equal_state(whole, part, 4)


@pytest.mark.parametrize("at_end", ["true", "false"])
def test_a_last_checkpoint_outlives_a_result_that_failed(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_end: str
) -> None:
    """Asked for, it stays; else what was learned lies there only until the result is written."""
    config = config_for(base, pictures, tmp_path, run__steps=2, save__at_end=at_end)
    folder = folder_for(config)
    with monkeypatch.context() as patch:
        patch.setattr(Results, "write", raiser(OSError(5, "a bad sector")))
        with pytest.raises(OSError, match="a bad sector"), bare():
            run(folder)
    assert list(saved_steps(folder.checkpoints)) == [2]
    go_on(folder)
    assert (folder.path / "run.safetensors").is_file()
    assert list(saved_steps(folder.checkpoints)) == ([2] if at_end == "true" else [])


def raiser(error: Exception) -> Any:
    """Takes whatever it is called with, and raises."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def edited(folder: Path, **changes: Any) -> None:
    """Changes a checkpoint's manifest, as a hand or a bad sector would."""
    manifest = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**manifest, **changes}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of one tensor."""
    state = TrainState(7, {"w": torch.ones(3)}, {"optimizer": {}}, {"rank": 4})
    return save_state(tmp_path, state)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 9999}, "is not what was written"),
        ({"identity": {"rank": 8}}, "is not what was written"),
        ({"files": {}}, "is not what was written"),
        ({"checksum": None}, "is not what was written"),
        ({"version": 1}, "is not what was written"),
        ({"version": 3}, "of version 3; known are 1 and 2"),
        ({"version": "2"}, "of version '2'"),
        ({"version": True}, "of version True"),
    ],
)
def test_a_manifest_is_checked_itself(saved: Path, changes: dict[str, Any], named: str) -> None:
    edited(saved, **changes)
    with pytest.raises(UserError, match=named):
        load_state(saved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step": 9999}, "names step 9999"),
        ({"step": "7"}, "names step '7'"),
        ({"files": {"../x": ""}}, "names other files"),
        ({"identity": 5}, "damaged"),
    ],
)
def test_a_manifest_of_the_first_version_resumes_if_it_is_sound(
    saved: Path, changes: dict[str, Any], named: str
) -> None:
    manifest = json.loads((saved / "state.json").read_text())
    del manifest["checksum"]
    (saved / "state.json").write_text(json.dumps({**manifest, "version": 1}))
    assert load_state(saved).step == 7
    edited(saved, **changes)
    with pytest.raises(UserError, match=named):
        load_state(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "\x00"])
def test_a_manifest_that_is_none(saved: Path, text: str) -> None:
    (saved / "state.json").write_text(text)
    with pytest.raises(UserError):
        load_state(saved)


def test_a_checkpoint_by_another_name_is_refused(saved: Path) -> None:
    """Its own checksum is right, and its step is not the folder's."""
    moved = saved.rename(saved.with_name("step-009999"))
    with pytest.raises(UserError, match=r"names step 7, the folder step-009999"):
        load_state(moved)


def test_a_refused_resume_changes_nothing(base: Path, pictures: Path, tmp_path: Path) -> None:
    """Neither by a setting that cannot change, nor while another is at work there."""
    folder = train(config_for(base, pictures, tmp_path, save__every_steps=1, run__steps=2))

    def files() -> dict[str, bytes]:
        logs = {folder.events_file, folder.control_file, folder.lock_file, folder.engine_log}
        found = (path for path in folder.path.rglob("*") if path.is_file() and path not in logs)
        return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in found}

    before = files()
    command = ["train", "--resume", str(folder.path), "run.steps=9"]
    assert main([*command, "method.rank=8"]) == 2
    assert files() == before
    assert status(folder).state == "finished"
    assert "rank was 4 and is now 8" in status(folder).message
    with folder.lock:
        assert main(command) == 2
    assert files() == before
