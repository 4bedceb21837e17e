"""``dreambooth runs``: what runs there are, what they do, and telling them what to do."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.commands.options import Reporting, argument, print_json, tell
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import (
    VERBS,
    RunFolder,
    RunSummary,
    attach,
    command,
    find_run,
    list_runs,
    read_receipt,
    status,
    terminate,
)

_COLOURS = {
    "running": "green",
    "waiting": "cyan",
    "stopped": "yellow",
    "failed": "red",
    "lost": "red",
}
_FOLLOW_CODES = {"finished": 0, "stopped": 130}
"""Exit codes of ``follow`` by how the run ended; 1 for anything else."""


ACTIONS = {
    "list": "list the runs (also without an action)",
    "show": "everything about one run",
    "follow": "watch a run until it ends; Ctrl+C leaves it running",
    **{verb.replace("_", "-"): text for verb, text in VERBS.items()},
    "kill": "ask a run to stop, and end its worker if it does not",
}
EXAMPLES = "actions:\n" + "\n".join(f"  {name:<20} {text}" for name, text in ACTIONS.items())


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    action: str = argument(
        "list", positional=True, choices=tuple(ACTIONS), metavar="ACTION", help="one of those below"
    )
    name: str | None = argument(
        None,
        kind="run folder",
        positional=True,
        metavar="NAME",
        help="the run's name, or its folder",
    )
    runs: str = argument("runs", kind="run folder", metavar="FOLDER", help="where runs are")
    patience: float = argument(
        30.0, between=(0, 86_400), metavar="SECONDS", help="how long kill waits (30)"
    )


def run(args: Options) -> int:
    """Does what was asked; returns the exit code."""
    root = Path(args.runs)
    if args.action == "list":
        return _list(root, as_json=args.json)
    if args.name is None:
        raise UserError("no run is named", do=f"dreambooth runs {args.action} NAME")
    folder = find_run(root, args.name)
    if args.action == "show":
        return _show(folder, as_json=args.json)
    if args.action == "follow":
        return _follow(folder, as_json=args.json)
    if args.action == "kill":
        outcome = terminate(folder, patience=args.patience)
        tell(args, {"run": folder.name, "outcome": outcome}, [f"{folder.name}: {outcome}"])
        return 0
    verb = args.action.replace("-", "_")
    command(folder, verb)
    tell(args, {"run": folder.name, "verb": verb}, [f"{folder.name}: asked to {VERBS[verb]}"])
    return 0


def _list(root: Path, *, as_json: bool) -> int:
    from rich.table import Table

    from dreambooth_core.commands.console import terminal, words

    runs = list_runs(root)
    if as_json:
        print_json([run.as_dict() for run in runs])
        return 0
    console = terminal()
    if not runs:
        console.print(words(f"no runs in {root.absolute()}"))
        return 0
    table = Table("run", "state", "step", "loss", "last heard of", "results")
    for run in runs:
        state = words((run.state, _COLOURS.get(run.state, "default")))
        heard = _when(run.updated or run.created)
        result = words(*run.results[-1:])
        table.add_row(words(run.name), state, _step(run), _loss(run), heard, result)
    console.print(table)
    return 0


def _show(folder: RunFolder, *, as_json: bool) -> int:
    from dreambooth_core.commands.console import facts, terminal

    summary = status(folder)
    if as_json:
        print_json({**summary.as_dict(), "receipt": read_receipt(folder)})
        return 0
    terminal().print(facts(_lines(summary)))
    return 0


def _lines(run: RunSummary) -> list[tuple[str, str]]:
    prepares = run.state == "running" and run.stage not in ("", "train")
    lines = [
        *(("run", run.name), ("folder", run.path), ("state", run.state), ("", run.message)),
        ("preparing", f"{run.stage} {run.stage_step} of {run.stage_steps}" if prepares else ""),
        ("step", _step(run)),
        ("loss", _loss(run)),
        *((name, _when(getattr(run, name))) for name in ("created", "started", "ended")),
        ("warnings", str(run.warnings or "")),
        *(("result", path) for path in run.results),
        *(("sample", path) for path in run.samples[-4:]),
    ]
    return [(name, value) for name, value in lines if value]


def _follow(folder: RunFolder, *, as_json: bool) -> int:
    try:
        if as_json:
            for event in attach(folder):
                sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
                sys.stdout.flush()
        else:
            _watch(folder)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{folder.name} is running; 'dreambooth runs stop {folder.name}' ends it\n"
        )
        return 0
    return _FOLLOW_CODES.get(status(folder).state, 1)


def _watch(folder: RunFolder) -> None:
    from dreambooth_core.commands.console import words
    from dreambooth_core.commands.progress import EventPrinter

    with EventPrinter() as printer:
        for event in attach(folder):
            printer(event)
    summary = status(folder)
    line = f"{summary.state}: {summary.message}" if summary.message else summary.state
    printer.console.print(words(line))
    for result in summary.results[-1:]:
        printer.console.print(words(f"result: {folder.path / result}"))


def _step(run: RunSummary) -> str:
    return f"{run.step} of {run.steps}" if run.steps else ""


def _loss(run: RunSummary) -> str:
    return "" if run.loss is None else f"{run.loss:.4f}"


def _when(moment: float | None) -> str:
    if moment is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
