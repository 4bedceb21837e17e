"""The lock: one holder, released by death, looked at without being taken."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dreambooth_core.disk import locks as lock_module
from dreambooth_core.disk.locks import FileLock
from dreambooth_core.errors import UserError
from tests.helpers.waiting import PATIENCE, until

HOLD = """
import sys, time
from dreambooth_core.disk.locks import FileLock
lock = FileLock(sys.argv[1])
print(lock.acquire(), flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    first, second = FileLock(path), FileLock(path)
    assert not second.is_held() and not path.exists()
    assert first.acquire() and first.acquire()
    assert first.is_held() and second.is_held()
    assert not second.acquire(patience=0.05)
    assert second.holder()["pid"] == os.getpid()
    first.release()
    first.release()
    assert not second.is_held()
    with second:
        assert first.is_held()
    assert not first.is_held()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        assert FileLock(path).is_held()
        assert FileLock(path).holder()["pid"] == holder.pid
        holder.kill()
    assert not FileLock(path).is_held()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "worker.lock")
    lock.acquire()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(2 * PATIENCE,))
    child.start()
    try:
        os.close(lock._handle)  # type: ignore[arg-type]  # as the kernel does when we die
        lock._handle = None
        until(lambda: not FileLock(lock.path).is_held())
    finally:
        child.kill()
        child.join()


def test_looking_disturbs_nobody(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    path.touch()
    done = threading.Event()
    seen: list[bool] = []

    def look() -> None:
        while not done.is_set():
            seen.append(FileLock(path).is_held())

    lookers = [threading.Thread(target=look) for _ in range(3)]
    lock = FileLock(path)
    try:
        for each in lookers:
            each.start()
        time.sleep(0.1)
        assert lock.acquire(patience=PATIENCE)
    finally:
        done.set()
        for each in lookers:
            each.join()
        lock.release()


def test_a_note_that_is_unreadable_is_no_note(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    for content in (b"", b" ", b" [1]", b" {", b"\xff\xfe\x00"):
        path.write_bytes(content)
        assert FileLock(path).holder() == {}
    assert FileLock(tmp_path / "none").holder() == {}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not writable"):
        FileLock(tmp_path / "none" / "worker.lock").acquire()


class FakeMsvcrt:
    """What Windows does: byte 0 belongs to one handle, and others may not even read it."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.owners: dict[int, int] = {}
        real = os.read

        def read(handle: int, count: int) -> bytes:
            owner = self.owners.get(os.fstat(handle).st_ino)
            if owner not in (None, handle) and os.lseek(handle, 0, os.SEEK_CUR) == 0:
                raise PermissionError(13, "Permission denied")
            return real(handle, count)

        monkeypatch.setattr(lock_module.os, "read", read)

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (os.lseek(handle, 0, os.SEEK_CUR), count) == (0, 1)
        inode = os.fstat(handle).st_ino
        if mode == self.LK_UNLCK:
            assert self.owners.pop(inode) == handle
        elif self.owners.setdefault(inode, handle) != handle:
            raise PermissionError(13, "Permission denied")


def test_the_lock_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt(monkeypatch))  # type: ignore[arg-type]
    path = tmp_path / "worker.lock"
    first, second = FileLock(path, windows=True), FileLock(path, windows=True)
    assert first.acquire()
    assert second.is_held()
    assert not second.acquire(patience=0)
    assert second.holder()["pid"] == os.getpid()
    first.release()
    assert not second.is_held()
    assert second.acquire()
    second.release()
