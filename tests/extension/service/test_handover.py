"""The host's model leaves the GPU for a run and comes back, whatever happens."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from helpers.fake_host import FakeHost

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import FileLock, RunFolder, status
from extension.service import handover
from extension.service.handover import Busy, Handover
from tests.helpers.waiting import PATIENCE, until

LENT = ["guard", "release ram"]
BACK = ["unguard", "restore"]


class Worker:
    """A worker's outward signs: it holds the run's lock and writes events."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.lock: FileLock | None = None

    def begin(self) -> None:
        self.run.control.mark_start(self.run.events.size())
        self.lock = self.run.lock
        assert self.lock.acquire()
        self.run.events.write("started", steps=1)

    def end(self, kind: str = "finished") -> None:
        if kind == "finished":
            self.run.events.write("finished", outcome="done")
        assert self.lock is not None
        self.lock.release()


@pytest.fixture
def lent(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Handover:
    monkeypatch.setattr(handover, "POLL", 0.01)
    return Handover(host)


@pytest.fixture
def worker(host: FakeHost) -> Worker:
    return Worker(RunFolder.create(host.folders().runs, "dog"))


@pytest.mark.parametrize("ending", ["finished", "killed"])
def test_there_and_back(host: FakeHost, lent: Handover, worker: Worker, ending: str) -> None:
    ended: list[str] = []
    lent.ended = lambda run: ended.append(f"{run.name} {host.log[-1]}")
    lent.lend(worker.run, worker.begin)
    until(lambda: worker.lock is not None)
    assert host.log == LENT
    assert lent.words == "the model waits in RAM"
    assert host.gate is not None
    with pytest.raises(Busy, match="training 'dog'"):
        host.gate()
    host.choose(generate="allow")
    host.gate()
    worker.end(ending)
    assert lent.idle(PATIENCE)
    assert host.log == LENT + BACK
    assert (lent.words, host.gate) == ("", None)
    assert ended == ["dog release ram"]


def test_a_worker_that_cannot_start(host: FakeHost, lent: Handover, worker: Worker) -> None:
    def fail() -> None:
        raise UserError("no Python", do="Make one.")

    lent.lend(worker.run, fail)
    assert lent.idle(PATIENCE)
    assert host.log == LENT + BACK
    assert status(worker.run).state == "failed"
    assert "no Python" in status(worker.run).message


@pytest.mark.parametrize("call", ["release", "guard", "restore", "unguard"])
def test_a_host_that_fails_does_not_stop_training(
    host: FakeHost, lent: Handover, worker: Worker, call: str
) -> None:
    host.fails = {call}
    lent.lend(worker.run, worker.begin)
    until(lambda: worker.lock is not None)
    worker.end()
    assert lent.idle(PATIENCE)
    assert lent.words == ""
    assert ("could not be brought back" in lent.trouble) == (call == "restore")
    assert host.log[-1] in BACK
    host.fails = set()
    host.log.clear()
    again = Worker(RunFolder.create(host.folders().runs, "again"))
    lent.lend(again.run, again.begin)
    until(lambda: again.lock is not None)
    again.end()
    assert lent.idle(PATIENCE) and host.log == LENT + BACK


def test_what_fails_at_the_end_keeps_nothing(
    host: FakeHost, lent: Handover, worker: Worker
) -> None:
    def fail(run: RunFolder) -> None:
        raise OSError("the disk is full")

    lent.ended = fail
    lent.lend(worker.run, worker.begin)
    until(lambda: worker.lock is not None)
    worker.end()
    assert lent.idle(PATIENCE) and host.log == LENT + BACK
    (warning,) = [event for event in worker.run.events if event["kind"] == "warning"]
    assert "could not be listed by the host: the disk is full" in warning["message"]


def test_it_stays_away_while_any_run_goes_on(
    host: FakeHost, lent: Handover, worker: Worker
) -> None:
    other = Worker(RunFolder.create(host.folders().runs, "cat"))
    lent.lend(worker.run, worker.begin)
    lent.lend(worker.run, worker.begin)  # twice is once
    lent.lend(other.run, other.begin)
    until(lambda: None not in (worker.lock, other.lock))
    worker.end()
    time.sleep(0.1)
    assert host.log == LENT
    other.end()
    assert lent.idle(PATIENCE) and host.log == LENT + BACK


def test_a_run_that_goes_on_already_is_watched(
    host: FakeHost, lent: Handover, worker: Worker
) -> None:
    worker.begin()
    lent.lend(worker.run, None)
    until(lambda: "release ram" in host.log)
    worker.end()
    assert lent.idle(PATIENCE) and host.log == LENT + BACK


def test_a_host_that_has_just_started_gives_its_model_up_later(
    host: FakeHost, lent: Handover, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["", "", "the model waits in RAM"])
    monkeypatch.setattr(host, "release", lambda how: next(answers))
    worker.begin()
    lent.lend(worker.run, None)
    until(lambda: lent.words == "the model waits in RAM")
    time.sleep(0.1)  # and is not asked again
    worker.end()
    assert lent.idle(PATIENCE)


def test_keep_leaves_the_model_where_it_is(host: FakeHost, lent: Handover, worker: Worker) -> None:
    host.choose(release="keep")
    lent.lend(worker.run, worker.begin)
    until(lambda: worker.lock is not None)
    worker.end()
    assert lent.idle(PATIENCE) and host.log == ["guard", *BACK]


def test_a_run_can_be_taken_back_before_it_begins(
    host: FakeHost, lent: Handover, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = threading.Event()

    def wait(how: str) -> str:
        drawing.wait(10)
        return ""

    monkeypatch.setattr(host, "release", wait)
    lent.lend(worker.run, worker.begin)
    until(lambda: "leaves the GPU" in lent.words)
    assert lent.waits(worker.run)
    assert lent.withdraw(worker.run)
    drawing.set()
    assert lent.idle(PATIENCE)
    assert worker.lock is None and not lent.withdraw(worker.run)


def test_a_folder_that_vanishes(host: FakeHost, lent: Handover, worker: Worker) -> None:
    import shutil

    lent.lend(worker.run, worker.begin)
    until(lambda: worker.lock is not None)
    worker.lock.release()
    shutil.rmtree(worker.run.path)
    assert lent.idle(PATIENCE) and host.log == LENT + BACK


def test_nothing_is_left_behind_in_files(worker: Worker, tmp_path: Path) -> None:
    assert not list(tmp_path.rglob("*.tmp"))
