"""A worker that has ended its run takes up the next one."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core import worker
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import FileLock, RunFolder, attach, spare, start, status
from dreambooth_core.memory.wanted import GROWN, MemoryWanted
from tests.helpers import waiting

RUN = ["/runs/a run", "--noted"]


class Waiting(threading.Thread):
    """A spare worker in a thread."""

    def __init__(self, runs: Path, kind: str = "k", seconds: float = 20.0) -> None:
        super().__init__(daemon=True)
        self.arguments = (runs, kind, seconds)
        self.wanted = threading.Event()
        self.given: list[str] | None = None
        self.start()

    def run(self) -> None:
        self.given = spare.wait(*self.arguments, wanted=self.wanted.is_set)


def until_one_waits(runs: Path) -> None:
    folder = runs / spare.FOLDER
    lock = FileLock(folder / "lock")
    # The lock is taken first, and the kind written under it.
    waiting.until(lambda: lock.is_held() and (folder / "kind").exists(), lambda: "nobody waits")


def test_what_is_handed_over_is_what_is_taken(tmp_path: Path) -> None:
    one = Waiting(tmp_path)
    until_one_waits(tmp_path)
    assert spare.wait(tmp_path, "k", 20.0) is None  # one is enough
    assert spare.hand_over(tmp_path, "k", RUN)
    one.join(5)
    assert one.given == RUN
    assert not spare.hand_over(tmp_path, "k", RUN)  # it is at work
    assert not list((tmp_path / spare.FOLDER).glob("k-*"))


def test_another_kind_is_not_asked(tmp_path: Path) -> None:
    one = Waiting(tmp_path)
    until_one_waits(tmp_path)
    assert not spare.hand_over(tmp_path, "other", RUN)
    one.wanted.set()
    one.join(5)
    assert not one.is_alive() and one.given is None


def test_a_request_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    folder = tmp_path / spare.FOLDER
    folder.mkdir()
    (folder / "kind").write_text("k")
    with FileLock(folder / "lock"):  # it hangs
        assert not spare.hand_over(tmp_path, "k", RUN, patience=0.1)
    assert not list(folder.glob("*.request"))
    assert not spare.hand_over(tmp_path, "k", RUN)  # it died


def test_one_that_leaves_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / spare.FOLDER
    folder.mkdir()
    (folder / "kind").write_text("k")
    lock = FileLock(folder / "lock")
    assert lock.acquire()
    write = spare.write_text

    def leaving(*arguments: object) -> None:
        write(*arguments)
        lock.release()

    monkeypatch.setattr(spare, "write_text", leaving)
    monkeypatch.setattr(spare.time, "sleep", lambda _: pytest.fail("waited for nobody"))
    assert not spare.hand_over(tmp_path, "k", RUN)
    assert not list(folder.glob("*.request"))


def test_what_a_killed_client_left_is_not_taken_for_long(tmp_path: Path) -> None:
    folder = tmp_path / spare.FOLDER
    folder.mkdir()
    old = folder / "k-1.request"
    old.write_text("[]")
    os.utime(old, (0, 0))
    assert spare.wait(tmp_path, "k", 0.05) is None
    assert not old.exists()


def test_the_kind_is_the_python_its_environment_and_the_code(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text("")
    kinds = {
        spare.kind_of(["python"], {"A": "1"}, tmp_path),
        spare.kind_of(["python"], {"A": "1"}, tmp_path),
        spare.kind_of(["python3"], {"A": "1"}, tmp_path),
        spare.kind_of(["python"], {"A": "2"}, tmp_path),
    }
    os.utime(code, (1, 1))
    kinds.add(spare.kind_of(["python"], {"A": "1"}, tmp_path))
    assert len(kinds) == 4


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "1e9"])
def test_minutes_that_are_none(said: str) -> None:
    with pytest.raises(UserError, match="is not a number of minutes"):
        spare.minutes({spare.MINUTES: said})


def test_minutes() -> None:
    assert spare.minutes({}) == spare.DEFAULT_MINUTES
    assert spare.minutes({spare.MINUTES: " 0 "}) == 0


def test_the_memory_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = MemoryWanted()
    monkeypatch.setattr("dreambooth_core.memory.wanted.LEAST", 0.0)
    assert not watch()
    free = [10 * GROWN]
    monkeypatch.setattr(MemoryWanted, "_on_gpu", lambda self: free[0])
    watch = MemoryWanted()
    free[0] -= GROWN
    assert not watch()
    free[0] -= 1
    assert watch()
    monkeypatch.setattr("dreambooth_core.memory.wanted.LEAST", 1.0)
    assert MemoryWanted()()


# -- in processes of their own ------------------------------------------------------------------


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch, run: RunFolder) -> Iterator[None]:
    """Workers wait for another run; none is left."""
    monkeypatch.setenv(spare.MINUTES, "5")
    yield
    pid = FileLock(run.path.parent / spare.FOLDER / "lock").holder().get("pid")
    if pid and FileLock(run.path.parent / spare.FOLDER / "lock").is_held():
        os.kill(pid, signal.SIGTERM)


def done_by(run: RunFolder, engine: Path) -> int:
    """Does a run; the process that did it."""
    start(run, python=engine)
    kinds = [event["kind"] for event in attach(run, timeout=waiting.PATIENCE)]
    assert kinds == ["started", "progress", "progress", "progress", "finished"]
    if spare.minutes(os.environ):
        until_one_waits(run.path.parent)
    return int(run.lock.holder()["pid"])


def another(run: RunFolder, name: str) -> RunFolder:
    folder = RunFolder.create(run.path.parent, name)
    folder.config.write_text("finish")
    return folder


@pytest.mark.usefixtures("lasting")
def test_the_next_run_is_done_by_the_same_process(
    run: RunFolder, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = done_by(run, engine), another(run, "second")
    assert done_by(second, engine) == first
    assert status(second).state == "finished"
    for folder in (run, second):
        assert folder.worker_log.read_text() == "raw output of the trainer\n"
    waiting.until(lambda: second.control.last_start()[1], lambda: "no exit is noted")
    monkeypatch.setenv("ANOTHER", "environment")
    third = another(run, "third")
    start(third, python=engine)
    list(attach(third, timeout=waiting.PATIENCE))
    assert third.lock.holder()["pid"] != first


@pytest.mark.usefixtures("lasting")
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_one_that_died_is_not_waited_for(run: RunFolder, engine: Path) -> None:
    first = done_by(run, engine)
    os.kill(first, signal.SIGKILL)
    assert done_by(another(run, "second"), engine) != first


def test_none_waits_where_none_is_wanted(run: RunFolder, engine: Path) -> None:
    first = done_by(run, engine)
    assert done_by(another(run, "second"), engine) != first
    assert not (run.path.parent / spare.FOLDER).exists()


def test_a_worker_that_goes_on_keeps_what_serves_the_next_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def trainer(folder: RunFolder, **arguments: object) -> None:
        given.append(arguments.get("kept"))

    commands = [[str(run.path), "--spare", "k"], None]
    monkeypatch.setattr(worker, "_trainer", trainer)
    monkeypatch.setattr(worker, "_spare", lambda *_: commands.pop(0))
    monkeypatch.setattr(worker, "print_to", lambda _: None)
    assert worker.main([str(run.path), "--spare", "k"]) == 0
    assert len(given) == 2 and given[0] is given[1] is not None
    assert worker.main([str(run.path)]) == 0
    assert given[2] is None


def test_what_waits_for_another_run_keeps_nothing_meanwhile(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def trainer(folder: RunFolder, **arguments: object) -> None:
        given.append(arguments["kept"])

    monkeypatch.setattr(worker, "_trainer", trainer)
    lasting, ahead = worker._Lasting(), [0]
    monkeypatch.setattr(worker.Turn, "wait", lambda _, tell: tell(1) if ahead[0] else None)
    queued = worker._queued(functools.partial(lasting))
    for ahead[0] in (0, 0, 1):
        queued(run)
    assert given[0] is given[1] is not given[2]
