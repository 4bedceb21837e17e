"""An engine environment whose trainer does what the run's ``config.yaml`` says in one word."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dreambooth_core.environment import Layout
from dreambooth_core.jobs import RunFolder

TRAINER = """
import os, sys, time, types
import dreambooth_core.errors as errors

def run(folder, *, on_event=None, kept=None):
    what = folder.config.read_text()
    control = folder.control
    print("raw output of the trainer", flush=True)
    folder.events.write("started", step=0, steps=3, where=os.getcwd(), flags=dict(
        path=os.environ.get("PYTHONPATH"), utf8=sys.flags.utf8_mode,
        leader=hasattr(os, "getsid") and os.getsid(0) == os.getpid()))
    for step in range(1, 4 if what == "finish" else 10_000):
        for verb in control.poll():
            if verb == "stop" and what != "deaf":
                raise errors.Stopped("stopped as asked")
        folder.events.write("progress", step=step, steps=3, loss=1 / step)
        time.sleep(0.05)

for name, value in (("run", run), ("kept.Kept", object)):
    inside, _, attribute = name.rpartition(".")
    module = types.ModuleType("dreambooth_core.trainer." + (inside or name))
    setattr(module, attribute, value)
    sys.modules[module.__name__] = module
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a bare environment with that trainer in the real one's place."""
    folder = tmp_path_factory.mktemp("engine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = Layout(root=folder, home=folder).venv_python
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    asked = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    packages = Path(asked.stdout.strip())
    (packages / "fake_trainer.py").write_text(textwrap.dedent(TRAINER), encoding="utf-8")
    root = Path(__file__).parents[2]
    (packages / "fake.pth").write_text(f"{root}\nimport fake_trainer\n", encoding="utf-8")
    return python


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A new run."""
    folder = RunFolder.create(tmp_path / "runs", "a run")
    folder.config.write_text("finish", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def no_leftover_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper() in ("DREAMBOOTH_ENV", "PYTHONPATH", "PIP_TARGET"):
            monkeypatch.delenv(name)
