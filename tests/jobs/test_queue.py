"""Runs that wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.jobs import RunFolder, command, status
from dreambooth_core.jobs.events import Event
from dreambooth_core.jobs.queue import Turn
from dreambooth_core.worker import supervise
from tests.helpers.waiting import PATIENCE, until


class Work:
    """Runners that note when they begin and go on until they are let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let = {name: threading.Event() for name in ("a", "b", "c")}

    def __call__(self, folder: RunFolder, *, on_event: Callable[[Event], None] | None = None):
        self.begun.append(folder.name)
        assert self.let[folder.name].wait(PATIENCE)


@pytest.fixture
def go(tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth_core.jobs.queue.POLL", 0.02)
    monkeypatch.setattr(Turn.wait, "__kwdefaults__", {"poll": 0.02})
    work, threads, codes = Work(), [], {}

    def begin(name: str) -> RunFolder:
        folder = RunFolder.create(tmp_path, name)

        def run() -> None:
            codes[name] = supervise(folder, runner=work, queued=True)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        until(folder.lock.is_held)
        return folder

    yield begin, work, codes
    for let in work.let.values():
        let.set()
    for thread in threads:
        thread.join(20)


def test_one_after_the_other_in_the_order_of_their_start(go):
    begin, work, _ = go
    first = begin("b")
    until(lambda: work.begun == ["b"])
    second = begin("a")
    until(lambda: status(second).state == "waiting")
    third = begin("c")
    until(lambda: "2 before it" in status(third).message)
    assert work.begun == ["b"]
    assert status(first).state == "running"
    work.let["b"].set()
    until(lambda: work.begun == ["b", "a"])
    until(lambda: "1 before it" in status(third).message)
    assert status(second).state == "running"
    work.let["a"].set()
    until(lambda: work.begun == ["b", "a", "c"])


def test_a_waiting_run_can_be_stopped(go):
    begin, work, codes = go
    begin("a")
    until(lambda: work.begun == ["a"])
    waiting = begin("b")
    until(lambda: status(waiting).state == "waiting")
    command(waiting, "stop")
    until(lambda: "b" in codes)
    assert codes["b"] == 130
    assert status(waiting).state == "stopped"
    assert "before its turn" in status(waiting).message


def test_the_dead_hold_nobody_up(tmp_path: Path):
    dead, turn = Turn(tmp_path), Turn(tmp_path)
    dead.take()
    turn.take()
    assert turn.ahead() == 1
    assert dead._ticket is not None
    dead._ticket.release()  # as the operating system does when a process is killed
    assert turn.ahead() == 0
    last = Turn(tmp_path)
    last.take()
    assert last.ahead() == 1
    assert not FileLock(dead._path(dead._number)).path.exists()
    turn.leave()
    assert last.ahead() == 0
    last.leave()
