"""Real workers in processes of their own: they outlive their parent, and are seen to die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import (
    RunFolder,
    attach,
    client,
    command,
    launch,
    list_runs,
    start,
    status,
    terminate,
)
from tests.helpers import waiting

ROOT = Path(__file__).parents[2]

PARENT = """
import sys
from dreambooth_core.jobs import start
start(sys.argv[1], python=sys.argv[2])
"""


@pytest.fixture(autouse=True)
def no_worker_is_left(run: RunFolder) -> Iterator[None]:
    yield
    if run.lock.is_held():
        os.kill(run.lock.holder()["pid"], signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def until(run: RunFolder, state: str) -> None:
    waiting.until(lambda: status(run).state == state, lambda: f"{status(run)} is not {state}")


def until_at_work(run: RunFolder) -> None:
    waiting.until(lambda: status(run).step, lambda: status(run))


def kinds(run: RunFolder) -> list[str]:
    return [event["kind"] for event in run.events]


def test_a_worker_outlives_its_parent(
    run: RunFolder, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.write_text("on and on")
    monkeypatch.setenv("PYTHONPATH", str(run.path / "of the host"))
    session: dict[str, Any] = {"start_new_session": True} if os.name != "nt" else {}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(run.path), str(engine)], cwd=ROOT, **session
    ) as parent:
        assert parent.wait() == 0
    if os.name != "nt":  # nothing of the parent's session is left
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    until_at_work(run)
    assert status(run).state == "running"
    started = next(iter(run.events))
    assert started["flags"] == {"path": None, "utf8": 1, "leader": os.name != "nt"}
    assert Path(started["where"]) == ROOT
    assert "raw output of the trainer" in run.worker_log.read_text()
    command(run, "stop")
    events = list(attach(run, timeout=waiting.PATIENCE))
    assert (events[-1]["kind"], events[-1]["outcome"]) == ("finished", "stopped")
    until(run, "stopped")


def test_attach_gives_every_event_until_the_end(run: RunFolder, engine: Path) -> None:
    assert status(run).state == "waiting"
    start(run, python=engine)
    assert status(run).state in ("waiting", "running")
    steps = [event["kind"] for event in attach(run, timeout=waiting.PATIENCE)]
    assert steps == ["started", "progress", "progress", "progress", "finished"]
    until(run, "finished")
    summary = status(run)
    assert (summary.step, summary.steps, summary.loss) == (3, 3, 1 / 3)
    assert summary.started is not None and summary.ended is not None
    assert summary.ended >= summary.started
    assert kinds(run) == steps  # attaching after the end gives it all again
    assert [event["kind"] for event in attach(run)] == steps
    assert list_runs(run.path.parent) == [summary]
    with pytest.raises(UserError, match="cannot stop after epoch: the run is finished"):
        command(run, "stop_after_epoch")


def test_a_run_can_be_started_again_and_old_requests_are_history(
    run: RunFolder, engine: Path
) -> None:
    start(run, python=engine)
    list(attach(run, timeout=waiting.PATIENCE))
    until(run, "finished")
    run.control.request("stop")
    offset = run.events.size()
    start(run, python=engine)
    again = [event["kind"] for event in attach(run, offset=offset, timeout=waiting.PATIENCE)]
    assert again == ["started", "progress", "progress", "progress", "finished"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_worker_is_lost(run: RunFolder, engine: Path) -> None:
    run.config.write_text("on and on")
    start(run, python=engine)
    until_at_work(run)
    with pytest.raises(UserError, match="has a worker already"):
        start(run, python=engine)
    os.kill(run.lock.holder()["pid"], signal.SIGKILL)
    events = list(attach(run, timeout=waiting.PATIENCE))
    assert events[-1]["kind"] == "lost"
    assert kinds(run)[-1] == "progress"
    summary = status(run)
    assert summary.state == "lost" and "killed" in summary.message
    with pytest.raises(UserError, match="the run is lost"):
        command(run, "save")
    assert terminate(run) == "not running"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_a_worker_in_order(run: RunFolder, engine: Path, number: str) -> None:
    run.config.write_text("on and on")
    start(run, python=engine)
    until_at_work(run)
    os.kill(run.lock.holder()["pid"], getattr(signal, number))
    until(run, "stopped")
    assert status(run).message == "stopped as asked"
    assert json.loads(run.control_file.read_text().splitlines()[1])["verb"] == "stop"


def test_terminate_asks_first(run: RunFolder, engine: Path) -> None:
    run.config.write_text("on and on")
    start(run, python=engine)
    until_at_work(run)
    assert terminate(run, patience=20) == "stopped"
    assert status(run).state == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_terminate_insists(run: RunFolder, engine: Path) -> None:
    run.config.write_text("deaf")
    start(run, python=engine)
    until_at_work(run)
    assert terminate(run, patience=0.2, grace=1) == "killed"
    assert status(run).state == "lost"


def test_terminate_never_hits_a_stranger(run: RunFolder) -> None:
    hit: list[int] = []

    def kill(pid: int, merciless: bool) -> None:
        hit.append(pid)

    lock = run.lock
    with lock:
        for note in ({}, {"pid": -1}, {"pid": os.getpid()}, {"pid": 4, "machine": "elsewhere"}):
            run.lock_file.write_text(" " + json.dumps(note))
            with pytest.raises(UserError, match=r"not known|on elsewhere: end it there"):
                terminate(run, patience=0.01, grace=0.01, kill=kill)
        run.lock_file.write_text(' {"pid": 4}')
        with pytest.raises(UserError, match="process 4 does not end"):
            terminate(run, patience=0.01, grace=0.01, kill=kill)
    assert hit == [4, 4]


def test_windows_ends_the_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(client.subprocess, "run", lambda line, **_: ran.append(line))
    client.end_process(7, False, windows=True)
    assert ran == [["taskkill", "/PID", "7", "/T", "/F"]]


def test_detachment() -> None:
    assert launch.detachment(windows=False) == {"start_new_session": True}
    flags = launch.detachment(windows=True)["creationflags"]
    new_group, no_window, breakaway, detached = 0x200, 0x08000000, 0x01000000, 0x8
    assert flags == new_group | no_window | breakaway
    assert not flags & detached
    assert launch.detachment(windows=True, breakaway=False)["creationflags"] & breakaway == 0


def test_a_job_object_that_forbids_breaking_away(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def popen(*_: Any, creationflags: int, **__: Any) -> str:
        tried.append(creationflags)
        if creationflags & launch.CREATE_BREAKAWAY_FROM_JOB:
            raise PermissionError(5, "Access is denied")
        return "process"

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    started = launch._detached(["python"], run.worker_log, run.path, {}, windows=True)
    assert str(started) == "process"
    assert len(tried) == 2


def test_a_python_that_cannot_start(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"could not be started: .*install\.py"):
        start(run, python=run.path / "none")
    assert status(run).state == "lost"
    with pytest.raises(UserError, match="no such run"):
        start(run.path / "none")


def test_a_command_of_several_words(run: RunFolder, engine: Path) -> None:
    start(run, python=[str(engine), "-X", "dev"])
    assert [*attach(run, timeout=waiting.PATIENCE)][-1]["kind"] == "finished"


def test_a_worker_that_dies_at_once_is_lost(run: RunFolder) -> None:
    """It never came so far as to take the lock: that must not look like waiting for ever."""
    (run.path / "broken.cfg").write_text("")
    start(run, python=_python_that_fails(run.path))
    events = list(attach(run, timeout=waiting.PATIENCE))
    assert [event["kind"] for event in events] == ["lost"]
    assert "worker.log" in events[0]["message"]


def _python_that_fails(folder: Path) -> Path:
    if os.name == "nt":
        return Path(os.environ["SYSTEMROOT"]) / "System32" / "where.exe"
    path = folder / "python"
    path.write_text("#!/bin/sh\necho broken; exit 3\n")
    path.chmod(0o755)
    return path


def test_attach_gives_up_on_a_run_that_nobody_starts(run: RunFolder) -> None:
    assert list(attach(run, poll=0.01, timeout=0.05)) == []
