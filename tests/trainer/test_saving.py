"""Writes wait while the disk is full, say so, can be stopped, and name the first cause."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import RunGone, SaveFailed, Stopped
from dreambooth_core.jobs import RunFolder, status
from dreambooth_core.trainer.reports import Reporter
from dreambooth_core.trainer.saving import Asked, Saver, disk_full


class Disk:
    """A disk that is full for so many seconds of a clock that runs when somebody sleeps."""

    def __init__(self, folder: RunFolder, seconds: float, number: int = errno.ENOSPC) -> None:
        self.now = 0.0
        self.tries = 0
        self.seconds = seconds
        self.number = number
        asked, reporter = Asked(folder), Reporter(folder)
        self.save = Saver(
            folder.path, folder.path.parent, asked, reporter, self.sleep, lambda: self.now
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def write(self) -> str:
        self.tries += 1
        if self.now < self.seconds:
            raise OSError(self.number, f"full at try {self.tries}", "/disk/file")
        return "written"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path / "runs", "dog")
    made.control.mark_start(0)
    return made


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("seconds", [1, 3600])
def test_a_second_or_an_hour_ends_nothing(folder: RunFolder, seconds: int, number: int) -> None:
    old = folder.checkpoints / "step-000010"
    for path in (old, folder.checkpoints / "step-000020"):
        path.mkdir()
        (path / "state.json").write_bytes(b"{}" + bytes(1022))
    disk = Disk(folder, seconds, number)
    assert disk.save("the checkpoint of step 30", disk.write) == "written"
    assert seconds <= disk.now <= seconds + 31
    first, progress, last = list(folder.events)
    assert first["message"].startswith("the disk is full: the checkpoint of step 30 waits")
    assert "full at try 1 (/disk/file)" in first["message"]
    assert "dog/checkpoints/step-000010 (0.00 MiB)" in first["message"]
    assert "step-000020" not in first["message"]  # the newest is what the run resumes from
    assert progress["stage"] == status(folder).stage == "disk_full"
    assert progress["removable"] == [{"path": str(old), "bytes": 1024}]
    assert "there is room again" in last["message"]


def test_it_can_be_stopped_meanwhile(folder: RunFolder) -> None:
    disk = Disk(folder, 1e9)
    asleep = disk.save.sleep

    def sleep(seconds: float) -> None:
        asleep(seconds)
        if disk.now > 100:
            folder.control.request("stop")

    disk.save.sleep = sleep
    with pytest.raises(Stopped, match=r"the result dog is not saved\. The cause: full at try 1 "):
        disk.save("the result dog", disk.write)
    assert disk.now < 102


def test_after_a_day_it_ends_with_the_first_cause(folder: RunFolder) -> None:
    disk = Disk(folder, 1e9)
    with pytest.raises(
        SaveFailed, match=r"24 hours; the first cause was: full at try 1 "
    ) as failed:
        disk.save("the result dog", disk.write)
    assert disk.tries < 3000
    assert isinstance(failed.value.__cause__, OSError)


def test_other_failures_do_not_wait(folder: RunFolder) -> None:
    disk = Disk(folder, 1e9, errno.EACCES)
    with pytest.raises(PermissionError):
        disk.save("the result dog", disk.write)
    assert disk.tries == 1 and not list(folder.events)


def test_a_folder_that_is_gone_is_not_made_again(folder: RunFolder) -> None:
    disk = Disk(folder, 0)
    folder.path.rename(folder.path.with_name("elsewhere"))
    folder.path.mkdir()  # another in its place is not the run's
    with pytest.raises(RunGone, match="was deleted while it was at work"):
        disk.save("the result dog", lambda: write_bytes(folder.path / "x", b""))
    assert not list(folder.path.iterdir())


def test_the_cause_is_found_behind_what_libraries_make_of_it(tmp_path: Path) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises((OSError, RuntimeError)) as failed:
        torch.save({"a": torch.zeros(100)}, Full())  # type: ignore[arg-type]
    found = disk_full(failed.value)
    assert found is not None and found.errno == errno.ENOSPC
    assert disk_full(ValueError("full")) is None
