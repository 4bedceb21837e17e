"""``dreambooth doctor``: versions, devices, kernels, room, and what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diagnosis import Facts, Problem, gather, judge
from dreambooth_core.diagnosis.facts import BROKEN, NOTE, WARNING, Kernel
from dreambooth_core.diagnosis.judge import size

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {BROKEN: "red", WARNING: "yellow", NOTE: "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where runs go")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 0 if training can work, 1 if something is broken."""
    facts = gather(Path(args.runs))
    problems = judge(facts)
    broken = any(problem.severity == BROKEN for problem in problems)
    if args.json:
        report = {
            "ok": not broken,
            "problems": [vars(problem) for problem in problems],
            **facts.as_dict(),
        }
        json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _show(facts, problems)
    return 1 if broken else 0


def _show(facts: Facts, problems: list[Problem]) -> None:
    """Tables, or plain lines where rich itself is what is missing."""
    try:
        from rich.console import Console
    except ImportError:
        for problem in problems:
            sys.stdout.write(f"{problem.severity}: {problem.what}. {problem.do}\n")
        return
    console = Console(highlight=False)
    _versions(facts, console)
    _devices(facts, console)
    _kernels(facts, console)
    _verdict(problems, console)


def _versions(facts: Facts, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    around = facts.surroundings
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("[bold]dreambooth[/]", around.dreambooth)
    table.add_row("[bold]Python[/]", escape(f"{around.python}  {around.executable}"))
    table.add_row("[bold]system[/]", escape(f"{around.platform}, {around.cores} cores"))
    for package in facts.packages:
        state = package.version or "[dim]not installed[/]"
        if package.error:
            state += f"  [red]{escape(package.error)}[/]"
        table.add_row(f"[bold]{package.name}[/]", state)
    for name, value in around.variables.items():
        table.add_row(f"[bold]{name}[/]", escape(value))
    for place in facts.places:
        text = f"{place.path}  {size(place.free)} of {size(place.total)} free"
        table.add_row(f"[bold]{place.purpose}[/]", escape(text))
    console.print(table)


def _devices(facts: Facts, console: Console) -> None:
    from rich.table import Table

    if not facts.devices:
        return
    table = Table("device", "what", "memory free", "details", title="Devices", title_justify="left")
    for device in facts.devices:
        details = ", ".join(f"{name} {value}" for name, value in device.details.items())
        memory = f"{size(device.free)} of {size(device.total)}"
        table.add_row(device.name, device.label, memory, device.error or details)
    console.print(table)


def _kernels(facts: Facts, console: Console) -> None:
    """One row a kernel and device, one column a precision."""
    from rich.markup import escape
    from rich.table import Table

    if not facts.kernels:
        return
    dtypes = list(dict.fromkeys(each.dtype for each in facts.kernels))
    title = "Attention, run forward and backward"
    table = Table("device", "attention", *dtypes, "note", title=title, title_justify="left")
    for device, name in dict.fromkeys((each.device, each.kernel) for each in facts.kernels):
        row = [e for e in facts.kernels if (e.device, e.kernel) == (device, name)]
        cells = [_cell([each for each in row if each.dtype == dtype]) for dtype in dtypes]
        reasons = dict.fromkeys(each.reason for each in row if each.reason)
        table.add_row(device, name, *cells, escape("; ".join(reasons)[:80]))
    console.print(table)


def _cell(kernels: list[Kernel]) -> str:
    """Whether a kernel runs in one precision, and for which head sizes if not for all."""
    working = [each for each in kernels if each.works]
    if not working:
        return "[dim]no[/]"
    sizes = ", ".join(str(each.head_size) for each in working)
    only = "" if len(working) == len(kernels) else f" (heads of {sizes})"
    if all(each.frugal for each in working):
        return f"[green]yes[/]{only}"
    return f"[yellow]yes, much memory[/]{only}"


def _verdict(problems: list[Problem], console: Console) -> None:
    from rich.markup import escape

    for problem in problems:
        colour = _COLOURS[problem.severity]
        console.print(
            f"[{colour}]{problem.severity}[/]: {escape(problem.what)}. {escape(problem.do)}"
        )
    if not any(problem.severity == BROKEN for problem in problems):
        console.print("[green]Ready to train.[/]")
