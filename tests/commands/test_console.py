"""Words of others reach the terminal as they are, whatever rich would make of them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from helpers.runs import config_for
from helpers.tiny import draw_pictures, tiny_sd1
from rich.console import Console

from dreambooth_core import commands
from dreambooth_core.commands.console import facts, terminal, words
from dreambooth_core.commands.main import main
from dreambooth_core.commands.progress import EventPrinter
from dreambooth_core.config.loading import dump

ODD = "a [/red] [bold] :dog: \x1b[31m dog"
SHOWN = r"a [/red] [bold] :dog: \x1b[31m dog"


def written(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_lines_and_tables() -> None:
    console = terminal()
    console.file = io.StringIO()
    console.print(words(("failed", "red"), f": {ODD}"))
    console.print(facts([(ODD, ODD)]))
    assert written(console).count(SHOWN) == 3


def test_events() -> None:
    console = terminal()
    console.file = io.StringIO()
    printer = EventPrinter(console)
    printer({"kind": "warning", "message": ODD, "time": 0.0})
    printer({"kind": "saved", "path": ODD, "result": True, "time": 0.0})
    assert written(console).count(SHOWN) == 2


@pytest.mark.parametrize(("width", "rate"), [(80, ""), (120, "  lr 1.0e-04")])
def test_a_line_of_the_progress_fits_the_terminal(width: int, rate: str) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with EventPrinter(console) as printer:
        printer({"kind": "progress", "stage": "proof", "time": 0.0})
        for step in (1, 4000):
            event = {"kind": "progress", "stage": "train", "step": step, "steps": 4000}
            told = {"loss": 0.1893, "lr": 1e-4, "seconds_per_step": 0.94, "time": 0.0}
            printer({**event, **told})
    last = [line for line in written(console).splitlines() if "training" in line][-1]
    assert "4000/4000" in last and "00:00" in last
    assert f"loss 0.1893{rate}  0.94 s/step" in last and "…" not in last


def test_check_shows_a_prompt_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    base, images = tiny_sd1(tmp_path / "base"), draw_pictures(tmp_path / "images", 1)
    (images / "[b].png").write_bytes(b"none")
    changes = {"concepts[0]__instance_prompt": "a [/red] sks dog", "run__device": "cpu"}
    config = config_for(base, images, tmp_path / "runs", **changes)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert main(["check", str(file)]) == 0
    told = capsys.readouterr().out
    assert "a [/red] sks dog" in told
    assert "skipped [b].png" in told


def test_no_command_makes_a_console_of_its_own() -> None:
    folder = Path(commands.__file__).parent
    for file in folder.glob("*.py"):
        if file.name != "console.py":
            assert not re.search(r"\bConsole\(|\[/\]|rich\.markup", file.read_text("utf-8")), file
