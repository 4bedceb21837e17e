"""The notebook, cell by cell as a hosted machine runs it, on pocket."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from dreambooth_core.commands.main import main
from dreambooth_core.environment import locate

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "dreambooth.ipynb"
SHORT = """
CLONE = {clone!r}
OPTIONS = [
    "run.steps=2",
    "data.resolution=64",
    "validation.num_inference_steps=1",
    "log.tensorboard=false",
]
"""


def cells() -> list[str]:
    """The code, with shorter training right behind the parameters."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    made = []
    for cell in found:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            made.append("".join(cell["source"]))
            if "parameters" in cell["metadata"].get("tags", ()):
                made.append(SHORT.format(clone=str(ROOT)))
    return made


POPEN = subprocess.Popen


class Engine:
    """In the place of the engine's process: its command line, in this one. Starting takes longer
    than all that the notebook asks of it."""

    def __init__(self, command: list[str], **asked: Any) -> None:
        assert command[0] == str(locate(ROOT).command()[0])
        assert command[1:3] == ["-m", "dreambooth_core"] and asked["cwd"] == ROOT
        assert asked["stderr"] == subprocess.STDOUT
        said = io.StringIO()
        with (
            mock.patch.object(subprocess, "Popen", POPEN),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            self.returncode = main(command[3:])
        self.stdout = io.StringIO(said.getvalue())

    def wait(self) -> int:
        return self.returncode


def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells()), encoding="utf-8")
    monkeypatch.setenv("DREAMBOOTH_ENV", sys.prefix)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "Popen", Engine)
    runpy.run_path(str(script))
    told = capsys.readouterr().out
    run = tmp_path / "runs" / "my-star"
    assert (run / "my-star.safetensors").is_file()
    with Image.open(run / "grid.png") as grid:
        assert grid.size == (512, 256)
    assert f"everything is in {run}" in told


def test_the_words_of_the_command_line_are_the_notebooks() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for word in ("dreambooth check", "dreambooth train", "python install.py"):
        assert word in text
