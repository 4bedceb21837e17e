"""Stops, full disks, killed workers, deleted folders: what was learned stays, and resumes."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import PRIOR, bare, config_for, folder_for, go_on, losses, train

from dreambooth_core.errors import SaveFailed, Stopped, TrainingFailed, UserError
from dreambooth_core.jobs import RunFolder, saved_steps, status
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import saving
from dreambooth_core.trainer.run import run
from dreambooth_core.trainer.saving import Asked
from dreambooth_core.trainer.state import Trained
from dreambooth_core.trainer.train import Training
from dreambooth_core.worker import supervise


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Every run here without what makes a short one long."""
    with bare():
        yield


def ask(folder: RunFolder, verb: str, at_step: int) -> Any:
    """A listener that asks for ``verb`` once a step is reported."""

    def listen(event: dict[str, Any]) -> None:
        if event.get("stage") == "train" and event["step"] == at_step:
            folder.control.request(verb)

    return listen


@pytest.mark.parametrize("verb", ["stop", "stop_after_step"])
def test_stop_saves(base: Path, pictures: Path, tmp_path: Path, verb: str) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path))
    assert supervise(folder, on_event=ask(folder, verb, 2)) == 130
    assert list(saved_steps(folder.checkpoints)) == [2]
    said = status(folder).message
    assert said == "stopped at step 2 of 4; it resumes from step 2 (checkpoints/step-000002)"
    go_on(folder)
    assert max(losses(folder)) == 4


def test_stop_after_epoch_ends_with_the_epoch(base: Path, pictures: Path, tmp_path: Path) -> None:
    # Three pictures in batches of two: an epoch has two steps.
    folder = folder_for(config_for(base, pictures, tmp_path, run__steps=8))
    with pytest.raises(Stopped):
        run(folder, on_event=ask(folder, "stop_after_epoch", 3))
    assert list(saved_steps(folder.checkpoints)) == [4]


def test_stop_without_saving(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path))
    assert supervise(folder, on_event=ask(folder, "stop_without_saving", 1)) == 130
    assert not saved_steps(folder.checkpoints)
    assert status(folder).state == "stopped"
    assert "without saving; nothing is saved" in status(folder).message


@pytest.mark.parametrize("stage", ["class_images", "latents", "texts"])
def test_a_stop_while_it_prepares(base: Path, pictures: Path, tmp_path: Path, stage: str) -> None:
    changes = {**PRIOR, "prior__batch_size": 1, "data__cache": "disk"}
    folder = folder_for(config_for(base, pictures, tmp_path, **changes))

    def listen(event: dict[str, Any]) -> None:
        if event.get("stage") == stage:
            folder.control.request("stop")

    assert supervise(folder, on_event=listen) == 130
    assert "what was made so far is kept" in status(folder).message
    assert not any(event["kind"] == "started" for event in folder.events)


def test_a_stop_while_images_are_made_saves(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one denoising step; without the stop there would be fifty of them."""
    changes = {"validation__prompts": "[a ball]", "validation__every_steps": 2}
    folder = folder_for(
        config_for(base, pictures, tmp_path, validation__num_inference_steps=50, **changes)
    )
    denoised = []

    def polls(self: Asked) -> bool:
        denoised.append(1)
        if len(denoised) == 53:
            folder.control.request("stop")
        return stops(self)

    stops = Asked.stops
    monkeypatch.setattr("dreambooth_core.trainer.saving.Asked.stops", polls)
    monkeypatch.setattr(Training, "sample", _only_after_start(Training.sample))
    assert supervise(folder) == 130
    assert list(saved_steps(folder.checkpoints)) == [2]
    assert not [event for event in folder.events if event["kind"] == "sample"]


def test_the_resume_state_is_saved_by_time(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replaces the one before, and the last goes when the result is proven."""
    config = config_for(base, pictures, tmp_path, save__every_minutes=0.01)
    assert TrainConfig().save.every_minutes == 5.0
    folder = folder_for(config)
    seconds = iter(range(0, 10_000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    seen = []

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "saved" and not event["result"]:
            seen.append(sorted(p.name for p in folder.checkpoints.iterdir()))

    run(folder, on_event=listen)
    assert seen[0] == ["step-000001"]
    assert all(len(names) <= 2 for names in seen)
    assert list(folder.checkpoints.iterdir()) == []


def test_a_resume_state_that_cannot_be_saved_is_a_warning(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SaveFailed("the disk is full")

    monkeypatch.setattr("dreambooth_core.trainer.state.save_state", full)
    monkeypatch.setattr(saving.Clock, "due", lambda _: True)
    folder = train(config_for(base, pictures, tmp_path, run__steps=2))
    assert status(folder).state == "finished"
    assert "saving the resume state of step 1 failed" in warnings_of(folder)[0]


def test_what_fails_first_is_what_is_told(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(*_: Any) -> None:
        raise SaveFailed("the result cannot be written")

    def second(*_: Any) -> None:
        raise MemoryError("and no state either")

    monkeypatch.setattr(Training, "save_result", first)
    monkeypatch.setattr(Trained, "save_rolling", second)
    folder = folder_for(config_for(base, pictures, tmp_path, run__steps=1))
    assert supervise(folder) == 1
    assert status(folder).message == "the result cannot be written"
    assert warnings_of(folder) == [
        "the state of the last step could not be kept: and no state either"
    ]


def test_a_run_whose_folder_is_deleted_stops(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path, run__steps=50))
    said = []

    def delete(event: dict[str, Any]) -> None:
        said.append(event)
        if event.get("stage") == "train" and event["step"] == 2:
            shutil.rmtree(folder.path)

    assert supervise(folder, on_event=delete) == 1
    assert not folder.path.exists()
    assert said[-1]["kind"] == "error" and "was deleted while it was at work" in said[-1]["message"]
    assert len([event for event in said if event.get("stage") == "train"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_save_and_sample_now(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"validation__prompts": "[a ball]", "validation__num_inference_steps": 2}
    folder = folder_for(config_for(base, pictures, tmp_path, **changes))
    save, sample = ask(folder, "save", 1), ask(folder, "sample", 3)

    def both(event: dict[str, Any]) -> None:
        save(event)
        sample(event)

    run(folder, on_event=both)
    assert list(saved_steps(folder.checkpoints)) == [1]
    assert {e["step"] for e in folder.events if e["kind"] == "sample"} == {0, 3, 4}


def test_a_sample_can_be_asked_for_without_a_prompt(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    """It shows what is trained on; nothing else is made."""
    changes = {"validation__num_inference_steps": 1, "run__steps": 2}
    folder = folder_for(config_for(base, pictures, tmp_path, **changes))
    run(folder, on_event=ask(folder, "sample", 1))
    made = [event for event in folder.events if event["kind"] == "sample"]
    assert [(event["step"], event["prompt"]) for event in made] == [(1, "a photo of sks ball")]


def test_a_full_disk_is_waited_for(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path, save__every_steps=2))
    monkeypatch.setattr(saving, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(saving, "POLL", 0.01)
    there = []

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(event: dict[str, Any]) -> None:
        if event.get("stage") == "train" and event["step"] == 2:
            monkeypatch.setattr(os, "fsync", full)
        if event.get("stage") == "disk_full":
            there.append([p.name for p in folder.checkpoints.iterdir()])
            monkeypatch.undo()

    assert supervise(folder, on_event=fill) == 0
    assert there == [[]]
    assert list(saved_steps(folder.checkpoints)) == [2]
    assert max(losses(folder)) == 4
    assert "disk is full: the checkpoint of step 2 waits" in warnings_of(folder)[0]


def warnings_of(folder: RunFolder) -> list[str]:
    return [event["message"] for event in folder.events if event["kind"] == "warning"]


def _only_after_start(sample: Any) -> Any:
    """Validation images, but not those of step 0."""

    def wrapped(training: Training, **options: Any) -> None:
        if training.step:
            sample(training, **options)

    return wrapped


def test_a_loss_that_is_no_number_ends_the_run(base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"not (a number|numbers)"):
        train(config_for(base, pictures, tmp_path, optim__learning_rate=1000, run__steps=60))


def test_a_base_that_is_no_model_is_named(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "not-a-model"
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not-a-model"):
        train(config_for(folder, pictures, tmp_path))


def test_an_output_that_cannot_be_written_is_named(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="file"):
        folder_for(config_for(base, pictures, tmp_path / "file"))
