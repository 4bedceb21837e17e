"""``dreambooth presets``: the presets that come with the engine; ``presets NAME`` shows one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from rich.table import Table

from dreambooth_core.commands.console import terminal
from dreambooth_core.commands.options import Reporting, argument
from dreambooth_core.config.catalogue import entries, read_entry
from dreambooth_core.config.loading import preset_file


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    name: str | None = argument(None, positional=True, help="show this one, with its reasons")


def run(args: Options) -> int:
    """Lists them, or prints the YAML of one; returns the exit code."""
    if args.name is not None:
        path = preset_file(args.name)
        text = path.read_text(encoding="utf-8")
        if args.json:
            text = json.dumps({**_facts(path.stem), "yaml": text}, indent=2) + "\n"
        sys.stdout.write(text)
        return 0
    if args.json:
        json.dump([_facts(entry.name) for entry in entries()], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "version", "what"):
        table.add_column(column)
    for entry in entries():
        table.add_row(entry.name, entry.version, entry.about)
    terminal().print(table)
    return 0


def _facts(name: str) -> dict[str, object]:
    entry = read_entry(preset_file(name))
    return {"name": entry.name, "version": entry.version, "about": entry.about}
