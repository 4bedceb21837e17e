"""What ``launch`` starts ends with it: nothing is left behind by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dreambooth_core.commands import launch
from dreambooth_core.jobs import RunFolder

LAUNCHER = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print(worker.pid, flush=True, file=open(sys.argv[1], "w"))
time.sleep(60)
"""
"""As torch's: its worker has a session of its own, and does not mind being asked."""

OBEYING = """
import sys, time
while '"stop"' not in open(sys.argv[1]).read():
    time.sleep(0.01)
sys.exit(3)
"""
"""A run that ends when it is asked to."""

posix = pytest.mark.skipif(os.name == "nt", reason="raises signals of POSIX")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "dog")


def soon(number: int, when: object) -> threading.Thread:
    """Raises a signal here once ``when()`` is true."""

    def wait() -> None:
        while not when():  # type: ignore[operator]
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_waits(run: RunFolder, number: int) -> None:
    before = signal.getsignal(number)
    command = [sys.executable, "-c", OBEYING, str(run.control_file)]
    thread = soon(number, lambda: signal.getsignal(number) is not before)
    assert launch._supervised(run, command) == 3
    thread.join()
    assert run.control.poll() == ["stop"]
    assert signal.getsignal(number) is before
    assert (run.control.last_start()[1] or {})["code"] == 3


@posix
def test_the_second_ends_every_process(run: RunFolder, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    command = [sys.executable, "-c", LAUNCHER, str(told)]

    def started() -> bool:
        return told.is_file() and told.read_text().endswith("\n")

    def asked() -> bool:
        return '"stop"' in run.control_file.read_text()

    first = soon(signal.SIGTERM, started)
    second = soon(signal.SIGTERM, lambda: started() and asked())
    assert launch._supervised(run, command) == -signal.SIGKILL
    first.join()
    second.join()
    pid = int(told.read_text())
    gone = not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert gone


def test_a_process_that_is_gone_needs_no_ending() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    launch.end_all(process.pid)


def test_a_run_whose_main_process_died_is_told_in_one_line(run: RunFolder) -> None:
    run.events.write(kind="progress", stage="train", step=3)
    told = launch._unsaid(run, run.events.read(0)[0], 1)
    assert told == "a process ended without a word, and the others with it; nothing was saved"
    run.events.write(kind="finished", outcome="done")
    assert launch._unsaid(run, run.events.read(0)[0], 1) is None
