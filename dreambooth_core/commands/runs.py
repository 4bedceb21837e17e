"""``dreambooth runs``: what runs there are, what they do, and telling them what to do."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from dreambooth_core.commands.options import bounded
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where runs are")
    parser.add_argument("--json", action="store_true", help="print JSON")
    # The same after the action; left out there, what came before it stays.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--runs", metavar="FOLDER", help="where runs are")
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    actions = parser.add_subparsers(dest="what", metavar="ACTION")
    actions.add_parser("list", parents=[common], help="list the runs (also without an action)")
    named = {
        "show": "everything about one run",
        "follow": "watch a run until it ends; Ctrl+C leaves it running",
        **{verb.replace("_", "-"): text for verb, text in VERBS.items()},
        "kill": "ask a run to stop, and end its worker if it does not",
    }
    for name, text in named.items():
        action = actions.add_parser(name, parents=[common], help=text, description=text)
        action.add_argument("name", help="the run's name, or its folder")
        if name == "kill":
            action.add_argument(
                "--patience",
                type=bounded(float, 0, 86_400),
                default=30.0,
                help="seconds to wait for it (30)",
            )


def run(args: argparse.Namespace) -> int:
    """Does what was asked; returns the exit code."""
    root = Path(args.runs)
    if args.what in (None, "list"):
        return _list(root, as_json=args.json)
    folder = find_run(root, args.name)
    if args.what == "show":
        return _show(folder, as_json=args.json)
    if args.what == "follow":
        return _follow(folder, as_json=args.json)
    if args.what == "kill":
        outcome = terminate(folder, patience=args.patience)
        _say(args.json, f"{folder.name}: {outcome}", run=folder.name, outcome=outcome)
        return 0
    verb = args.what.replace("-", "_")
    command(folder, verb)
    _say(args.json, f"{folder.name}: asked to {VERBS[verb]}", run=folder.name, verb=verb)
    return 0


def _list(root: Path, *, as_json: bool) -> int:
    from rich.table import Table

    from dreambooth_core.commands.console import terminal, words

    runs = list_runs(root)
    if as_json:
        _print_json([run.as_dict() for run in runs])
        return 0
    console = terminal()
    if not runs:
        console.print(words(f"no runs in {root.absolute()}"))
        return 0
    table = Table("run", "state", "step", "loss", "last heard of", "results")
    for run in runs:
        colour = _COLOURS.get(run.state, "default")
        step = f"{run.step} of {run.steps}" if run.steps else ""
        loss = f"{run.loss:.4f}" if run.loss is not None else ""
        result = run.results[-1] if run.results else ""
        table.add_row(
            words(run.name),
            words((run.state, colour)),
            step,
            loss,
            _when(run.updated or run.created),
            words(result),
        )
    console.print(table)
    return 0


def _show(folder: RunFolder, *, as_json: bool) -> int:
    from dreambooth_core.commands.console import facts, terminal

    summary = status(folder)
    if as_json:
        _print_json({**summary.as_dict(), "receipt": read_receipt(folder)})
        return 0
    terminal().print(facts(_lines(summary)))
    return 0


def _lines(run: RunSummary) -> list[tuple[str, str]]:
    lines = [("run", run.name), ("folder", run.path), ("state", run.state)]
    if run.message:
        lines.append(("", run.message))
    if run.state == "running" and run.stage not in ("", "train"):
        lines.append(("preparing", f"{run.stage} {run.stage_step} of {run.stage_steps}"))
    if run.steps:
        lines.append(("step", f"{run.step} of {run.steps}"))
    if run.loss is not None:
        lines.append(("loss", f"{run.loss:.4f}"))
    for name in ("created", "started", "ended"):
        moment = getattr(run, name)
        if moment is not None:
            lines.append((name, _when(moment)))
    if run.warnings:
        lines.append(("warnings", str(run.warnings)))
    lines += [("result", path) for path in run.results]
    lines += [("sample", path) for path in run.samples[-4:]]
    return lines


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


def _when(moment: float | None) -> str:
    if moment is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _say(as_json: bool, line: str, **facts: Any) -> None:
    if as_json:
        _print_json(facts)
    else:
        sys.stdout.write(line + "\n")


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
