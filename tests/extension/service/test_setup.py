"""The engine's environment, told and built."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dreambooth_core.environment import locate
from dreambooth_core.jobs import FileLock
from extension.service.setup import Setup
from extension.service.types import BuildLog
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[3]

INSTALLER = """\
import json, os, sys
assert "PYTHONPATH" not in os.environ
file = sys.argv[sys.argv.index("--progress-file") + 1]
with open(file, "a") as progress:
    for told in (
        {"kind": "say", "text": "Everything else: about 156 MB"},
        {"kind": "step", "number": 2, "total": 4, "label": "75 packages"},
        {"kind": "progress", "done": 3, "total": 75, "unit": "packages"},
        {"kind": "end", "ok": True, "text": "The engine is ready"},
    ):
        progress.write(json.dumps(told) + "\\n")
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without an environment, whose installer is the test's."""
    monkeypatch.setenv("DREAMBOOTH_ENV", str(tmp_path / "far" / "env"))
    monkeypatch.setenv("PYTHONPATH", "/host")
    for name in ("py310", "py311"):
        (tmp_path / "locks").mkdir(exist_ok=True)
        (tmp_path / "locks" / f"{name}.txt").write_text("# download-bytes: 5000000\n")
    (tmp_path / "install.py").write_text(INSTALLER)
    return tmp_path


def finished(setup: Setup) -> BuildLog:
    until(lambda: not setup.state().building)
    return setup.log(0)


def test_what_would_be_downloaded(clone: Path) -> None:
    state = Setup(clone).state()
    assert (state.ready, state.building, state.reason) == (False, False, "there is none yet")
    assert state.home == str(clone / "far" / "env")
    assert state.plan and not state.plan.problem
    assert state.plan.disk_megabytes > state.plan.megabytes and state.plan.free_megabytes > 0
    assert state.plan.megabytes > 100 and state.plan.sources and "2." in state.plan.torch


def test_building_is_followed(clone: Path) -> None:
    setup = Setup(clone)
    setup.build()
    log = finished(setup)
    assert log.lines == ["Everything else: about 156 MB", "2/4 75 packages", "The engine is ready"]
    assert (log.step, log.done, log.total, log.unit) == ("2/4 75 packages", 3, 75, "packages")
    assert (log.running, log.ok) == (False, True)
    assert setup.log(log.offset).lines == []


def test_an_installer_that_dies_at_once(clone: Path) -> None:
    (clone / "install.py").write_text("raise SystemExit('this disk is full')")
    setup = Setup(clone)
    setup.build()
    log = finished(setup)
    assert (log.ok, log.lines) == (False, ["this disk is full"])


WAITING = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
open(sys.argv[sys.argv.index("--log") + 1], "w").close()
time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_it_can_be_cancelled(clone: Path) -> None:
    (clone / "install.py").write_text(WAITING)
    setup = Setup(clone)
    setup.cancel()  # nothing goes on
    setup.build()
    until((clone / "far" / "env.log").exists)
    assert setup.state().building
    setup.cancel()
    assert finished(setup).ok is False
    assert setup._process is not None and setup._process.wait() == 130


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_one_that_an_earlier_host_began_can_be_cancelled_too(clone: Path) -> None:
    (clone / "install.py").write_text(WAITING)
    first = Setup(clone)
    first.build()
    until((clone / "far" / "env.log").exists)
    assert first._process is not None
    lock = locate(clone).lock
    lock.write_text(" " + json.dumps({"pid": first._process.pid}))
    later = Setup(clone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileLock, "is_held", lambda self: True)
        later.cancel()
    assert first._process.wait() == 130
