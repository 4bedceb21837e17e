"""The notebook, cell by cell as a hosted machine runs it, on pocket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(cells()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "DREAMBOOTH_ENV": sys.prefix},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "runs" / "my-star"
    assert (run / "my-star.safetensors").is_file()
    with Image.open(run / "grid.png") as grid:
        assert grid.size == (512, 256)
    assert f"everything is in {run}" in done.stdout


def test_the_words_of_the_command_line_are_the_notebooks() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for word in ("dreambooth check", "dreambooth train", "python install.py"):
        assert word in text
