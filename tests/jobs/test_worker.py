"""The worker in this process: the lock, the endings, the exit codes, the signals."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import process, worker
from dreambooth_core.errors import Stopped, TrainingFailed, UserError
from dreambooth_core.jobs import RunFolder, status
from dreambooth_core.jobs.events import Event
from dreambooth_core.worker import supervise

ROOT = Path(__file__).parents[2]


def failing(error: BaseException) -> worker.Runner:
    def run(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        folder.events.write("started", steps=1)
        raise error

    return run


def nothing(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
    pass


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no images", where="dog", do="Add some."), 2, "dog: no images. Add some."),
        (TrainingFailed("the loss is NaN"), 1, "the loss is NaN"),
        (OutOfMemoryError("tried to allocate 2 GiB"), 1, "the device has not enough free memory"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "the device has not enough free memory"),
        (RuntimeError("MPS backend out of memory"), 1, "the device has not enough free memory"),
        (MemoryError(), 1, "this computer has not enough free memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "this computer has not"),
        (OSError(errno.ENOSPC, "No space", "x.bin"), 1, "x.bin: the disk is full"),
        (ModuleNotFoundError("no", name="peft"), 2, "the engine's environment lacks peft."),
        (ModuleNotFoundError("no", name="dreambooth_core.x"), 1, "unexpected ModuleNotFoundError"),
        (SystemExit(3), 1, "a library ended the run with code 3"),
        (ValueError("two\nlines"), 1, "unexpected ValueError: two lines. The traceback is in"),
        (AssertionError(), 1, "unexpected AssertionError. The traceback is in"),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    run: RunFolder, error: BaseException, code: int, message: str
) -> None:
    seen: list[Event] = []
    assert supervise(run, runner=failing(error), on_event=seen.append) == code
    last = list(run.events)[-1]
    assert seen == [last]
    assert last["kind"] == "error" and last["type"] == type(error).__name__
    assert last["message"].startswith(message) and "\n" not in last["message"]
    assert last["details"] == "logs/engine.log"
    assert "Traceback" in run.engine_log.read_text(encoding="utf-8")
    assert status(run).state == "failed" and status(run).message == last["message"]
    assert not run.lock.is_held()


@pytest.mark.parametrize("error", [Stopped("after step 3"), KeyboardInterrupt()])
def test_a_stop_is_not_a_failure(run: RunFolder, error: BaseException) -> None:
    assert supervise(run, runner=failing(error)) == 130
    last = list(run.events)[-1]
    assert (last["kind"], last["outcome"]) == ("finished", "stopped")
    assert not run.engine_log.exists()


def test_the_runner_may_write_the_ending_itself(run: RunFolder) -> None:
    def finishing(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        assert folder.lock.is_held()
        folder.events.write("finished", outcome="done", results=["a"])

    assert supervise(run, runner=nothing) == 0
    assert supervise(run, runner=finishing) == 0
    assert [event.get("results") for event in run.events] == [None, ["a"]]


def test_a_second_worker_is_refused_and_writes_nothing(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.lock:
        with pytest.raises(UserError, match=rf"has a worker already \(process {os.getpid()}\)"):
            supervise(run, runner=nothing)
        assert worker.main([str(run.path)], runner=nothing) == 2
    line = capsys.readouterr().err
    assert line.startswith("worker: ") and line.count("\n") == 1
    assert not run.events_file.exists() and not run.control_file.exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        supervise(RunFolder(tmp_path / "none"), runner=nothing)


def test_requests_from_before_count_only_if_the_start_was_noted(run: RunFolder) -> None:
    polled: list[list[str]] = []

    def polling(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        polled.append(folder.control.poll())

    run.control.request("stop")
    supervise(run, runner=polling)
    run.control.mark_start(run.events.size())
    run.control.request("save")
    supervise(run, runner=polling, noted=True)
    assert polled == [[], ["save"]]


@pytest.mark.skipif(os.name == "nt", reason="raises signals of POSIX")
def test_the_first_signal_asks_and_the_second_interrupts(run: RunFolder) -> None:
    before = signal.getsignal(signal.SIGINT)

    def stubborn(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        control = folder.control
        signal.raise_signal(signal.SIGTERM)
        assert control.poll() == ["stop"]
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not interrupted")

    assert supervise(run, runner=stubborn) == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name == "nt", reason="raises signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_heard_where_nothing_can_be_written(run: RunFolder, name: str) -> None:
    def listening(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        control = folder.control
        folder.control_file.unlink()
        folder.control_file.mkdir()  # as good as a full disk
        signal.raise_signal(getattr(signal, name))
        folder.control_file.rmdir()
        assert control.poll() == ["stop"]
        assert control.poll() == []

    assert supervise(run, runner=listening) == 0


@pytest.mark.skipif(os.name == "nt", reason="raises signals of POSIX")
def test_the_second_signal_says_what_is_left(run: RunFolder) -> None:
    def twice(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        folder.events.write("started")
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    assert supervise(run, runner=twice) == 130
    assert status(run).message == "ended at once; nothing was saved, so the run starts anew"
    (run.checkpoints / "step-000007").mkdir()
    (run.checkpoints / "step-000007" / "state.json").touch()
    assert supervise(run, runner=twice) == 130
    assert status(run).message == "ended at once; the run resumes from step 7"


@pytest.mark.skipif(os.name == "nt", reason="a parent's death is not seen there")
def test_a_worker_whose_launcher_is_gone_stops(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = iter([1, 1, 2])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 2))
    monkeypatch.setattr(process, "WATCH", 0.0)
    process._watch_launcher(run.control)
    assert run.control.poll() == ["stop"]


def test_one_of_several_processes_only_follows(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with run.lock:  # rank 0 has it
        assert supervise(run, runner=nothing) == 0
        assert supervise(run, runner=failing(Stopped("x"))) == 130
        assert supervise(run, runner=failing(UserError("x"))) == 2
    assert {event["kind"] for event in run.events} == {"started"}  # the test's own


def test_outside_the_main_thread_signals_stay_as_they_are(run: RunFolder) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervise(run, runner=nothing)))
    thread.start()
    thread.join()
    assert codes == [0]


def test_messages_go_to_the_log_and_logging_is_left_as_it_was(run: RunFolder) -> None:
    root = logging.getLogger()
    handlers, show = list(root.handlers), warnings.showwarning

    def talking(folder: RunFolder, *, on_event: Callable[[Event], None] | None = None) -> None:
        logging.getLogger("dreambooth_core.trainer").info("a message é")
        logging.getLogger("library").info("chatter")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old way", stacklevel=1)

    supervise(run, runner=talking)
    text = run.engine_log.read_text(encoding="utf-8")
    assert "a message é" in text and "chatter" not in text
    assert root.handlers == handlers and warnings.showwarning is show


def test_a_full_disk_still_ends_with_a_code(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreambooth_core.jobs import events

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "append_line", full)
    seen: list[Event] = []
    assert supervise(run, runner=nothing, on_event=seen.append) == 0
    assert seen[-1]["kind"] == "finished"


def test_the_command_line(run: RunFolder, engine: Path) -> None:
    ran = subprocess.run(
        [str(engine), "-m", "dreambooth_core.worker", str(run.path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert status(run).state == "finished"
    broken = subprocess.run(
        [sys.executable, "-S", "-m", "dreambooth_core.worker", str(run.path / "none")],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert broken.returncode == 2
    assert broken.stderr.count("\n") == 1 and "no such run" in broken.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    log = process._Log("/dev/full", encoding="utf-8", delay=True)
    log.emit(logging.makeLogRecord({"msg": "hello"}))
    log.close()
