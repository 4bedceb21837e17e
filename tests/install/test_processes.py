"""A stop is a stop, whatever the child that runs at that moment says of its end."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.environment.pip import Pip
from dreambooth_core.environment.processes import run_logged, started, stoppable
from dreambooth_core.errors import DreamBoothError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
STOPS_ITS_PARENT = """
import os, signal, sys
os.kill(os.getppid(), signal.SIGTERM)
print("ERROR: Max retries exceeded", flush=True)
sys.exit(1)
"""


@POSIX
def test_a_failure_after_a_stop_is_the_stop() -> None:
    with pytest.raises(KeyboardInterrupt), stoppable():
        Pip([sys.executable, "-c", STOPS_ITS_PARENT], io.StringIO()).check()


@POSIX
def test_a_stop_while_a_child_is_started_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    children = []
    popen = subprocess.Popen

    def stopped_popen(*arguments: object, **options: object) -> subprocess.Popen[str]:
        children.append(popen(*arguments, **options))  # type: ignore[call-overload]
        signal.raise_signal(signal.SIGTERM)
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", stopped_popen)
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(KeyboardInterrupt), stoppable(), started(sleeps):
        pytest.fail("the block ran")
    assert children[0].returncode is not None


@POSIX
def test_only_the_first_stop_interrupts_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while it cleans up
    assert signal.getsignal(signal.SIGTERM) is before


@POSIX
def test_what_ignores_ctrl_c_goes_on_doing_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_child_that_was_cancelled_by_the_console_is_a_stop() -> None:
    says = "import sys; print('ERROR: Operation cancelled by user'); sys.exit(1)"
    with pytest.raises(KeyboardInterrupt):
        Pip([sys.executable, "-c", says], io.StringIO()).check()


def test_without_a_stop_a_failure_is_told(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        stoppable(),
        pytest.raises(DreamBoothError, match="exit code 3"),
    ):
        run_logged([sys.executable, "-c", "import sys; sys.exit(3)"], log, "this")
