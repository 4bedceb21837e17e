"""``dreambooth doctor``: versions, devices, kernels, room, and what is wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands.options import Reporting, argument, print_json
from dreambooth_core.diagnosis import Facts, Problem, gather, judge
from dreambooth_core.diagnosis.facts import BROKEN, NOTE, WARNING, Kernel
from dreambooth_core.diagnosis.judge import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_COLOURS = {BROKEN: "red", WARNING: "yellow", NOTE: "cyan"}


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    runs: str = argument("runs", kind="run folder", metavar="FOLDER", help="where runs go")


def run(args: Options) -> int:
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
        print_json(report)
    else:
        _show(facts, problems)
    return 1 if broken else 0


def _show(facts: Facts, problems: list[Problem]) -> None:
    """Tables, or plain lines where rich itself is what is missing."""
    try:
        from dreambooth_core.commands.console import terminal
    except ImportError:
        for problem in problems:
            sys.stdout.write(f"{problem.severity}: {problem.what}. {problem.do}\n")
        return
    console = terminal()
    _versions(facts, console)
    _devices(facts, console)
    _kernels(facts, console)
    _verdict(problems, console)


def _versions(facts: Facts, console: Console) -> None:
    from dreambooth_core.commands.console import facts as table
    from dreambooth_core.commands.console import words

    around = facts.surroundings
    rows: list[tuple[str, object]] = [
        ("dreambooth", around.dreambooth),
        ("Python", f"{around.python}  {around.executable}"),
        ("system", f"{around.platform}, {around.cores} cores"),
    ]
    for package in facts.packages:
        version = package.version or ("not installed", "dim")
        broken = [("  " + package.error, "red")] if package.error else []
        rows.append((package.name, words(version, *broken)))
    rows += around.variables.items()
    for place in facts.places:
        text = f"{place.path}  {size(place.free)} of {size(place.total)} free"
        rows.append((place.purpose, text))
    console.print(table(rows))


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
        table.add_row(device, name, *cells, "; ".join(reasons)[:80])
    console.print(table)


def _cell(kernels: list[Kernel]) -> Text:
    """Whether a kernel runs in one precision, and for which head sizes if not for all."""
    from dreambooth_core.commands.console import words

    working = [each for each in kernels if each.works]
    if not working:
        return words(("no", "dim"))
    sizes = ", ".join(str(each.head_size) for each in working)
    only = "" if len(working) == len(kernels) else f" (heads of {sizes})"
    if all(each.frugal for each in working):
        return words(("yes", "green"), only)
    return words(("yes, much memory", "yellow"), only)


def _verdict(problems: list[Problem], console: Console) -> None:
    from dreambooth_core.commands.console import words

    for problem in problems:
        told = f": {problem.what}. {problem.do}"
        console.print(words((problem.severity, _COLOURS[problem.severity]), told))
    if not any(problem.severity == BROKEN for problem in problems):
        console.print(words(("Ready to train.", "green")))
