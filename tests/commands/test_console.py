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
