"""``dreambooth presets``: the presets that come with the engine; ``presets NAME`` shows one."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.table import Table

from dreambooth_core.commands.console import terminal
from dreambooth_core.commands.options import Reporting, argument, print_json
from dreambooth_core.config.catalogue import Entry, entries, entry
from dreambooth_core.config.loading import preset_text


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    name: str | None = argument(None, positional=True, help="show this one, with its reasons")


def run(args: Options) -> None:
    """Lists them, or prints the YAML of one."""
    if args.name is not None:
        text = preset_text(args.name)
        if args.json:
            print_json({**_facts(entry(args.name)), "yaml": text})
        else:
            sys.stdout.write(text)
        return
    if args.json:
        print_json([_facts(each) for each in entries()])
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "version", "what"):
        table.add_column(column)
    for each in entries():
        table.add_row(each.name, each.version, each.about)
    terminal().print(table)


def _facts(preset: Entry) -> dict[str, object]:
    return {"name": preset.name, "version": preset.version, "about": preset.about}
