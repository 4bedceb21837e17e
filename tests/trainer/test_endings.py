"""Stops, full disks, killed workers: what was saved stays, and the run goes on from there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import config_for, folder_for, go_on, losses, train

from dreambooth_core.errors import SaveFailed, Stopped, TrainingFailed, UserError
from dreambooth_core.jobs import RunFolder, status
from dreambooth_core.trainer.run import run
from dreambooth_core.trainer.state import load_state, saved_steps
from dreambooth_core.worker import supervise
from tests.helpers.waiting import PATIENCE, until


def ask(folder: RunFolder, verb: str, at_step: int) -> Any:
    """A listener that asks for ``verb`` once a step is reported."""

    def listen(event: dict[str, Any]) -> None:
        if event.get("stage") == "train" and event["step"] == at_step:
            folder.control.request(verb)

    return listen


def test_stop_after_step_saves_and_stops(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path))
    with pytest.raises(Stopped, match="step 2"):
        run(folder, on_event=ask(folder, "stop_after_step", 2))
    assert list(saved_steps(folder.checkpoints)) == [2]
    go_on(folder)
    assert max(losses(folder)) == 4


def test_stop_after_epoch_ends_with_the_epoch(base: Path, pictures: Path, tmp_path: Path) -> None:
    # Three pictures in batches of two: an epoch has two steps.
    folder = folder_for(config_for(base, pictures, tmp_path, run__steps=8))
    with pytest.raises(Stopped):
        run(folder, on_event=ask(folder, "stop_after_epoch", 3))
    assert list(saved_steps(folder.checkpoints)) == [4]


def test_stop_now_does_not_wait_for_a_save(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path))
    assert supervise(folder, on_event=ask(folder, "stop", 1)) == 130
    assert not saved_steps(folder.checkpoints)
    assert status(folder).state == "stopped"


def test_save_and_sample_now(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"validation__prompts": "[a ball]", "validation__steps": 2}
    folder = folder_for(config_for(base, pictures, tmp_path, **changes))
    save, sample = ask(folder, "save", 1), ask(folder, "sample", 3)

    def both(event: dict[str, Any]) -> None:
        save(event)
        sample(event)

    run(folder, on_event=both)
    assert list(saved_steps(folder.checkpoints)) == [1]
    assert {e["step"] for e in folder.events if e["kind"] == "sample"} == {0, 3, 4}


def test_a_full_disk_leaves_the_earlier_save(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(config_for(base, pictures, tmp_path, save__every_steps=2))
    before = load_state(saved_steps(folder.checkpoints)[2])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(event: dict[str, Any]) -> None:
        if event["kind"] == "started":
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(SaveFailed, match="disk is full"):
        go_on(folder, on_event=fill, run__resume=2, save__every_steps=1)
    monkeypatch.undo()
    assert list(saved_steps(folder.checkpoints)) == [2]
    after = load_state(saved_steps(folder.checkpoints)[2])
    assert all((before.weights[n] == after.weights[n]).all() for n in before.weights)
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_loses_nothing_that_was_saved(
    base: Path, pictures: Path, tmp_path: Path, number: int
) -> None:
    folder = folder_for(
        config_for(base, pictures, tmp_path, run__steps=2000, save__every_steps=2, save__keep=2)
    )
    command = [sys.executable, "-m", "dreambooth_core.worker", str(folder.path)]
    worker = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    until(lambda: saved_steps(folder.checkpoints))
    worker.send_signal(number)
    code = worker.wait(PATIENCE)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert status(folder).state == ("stopped" if number == signal.SIGINT else "lost")
    last = max(saved_steps(folder.checkpoints))
    go_on(folder, run__steps=last + 1)
    assert max(step for step in losses(folder) if step <= last + 1) == last + 1


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
