"""``dreambooth train CONFIG [key=value …]``: a run in the foreground, in a folder of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dreambooth_core.commands.options import Reporting, argument
from dreambooth_core.config.describe import nest
from dreambooth_core.config.loading import dump, load
from dreambooth_core.deferral import load_libraries
from dreambooth_core.disk import write_json, write_text
from dreambooth_core.jobs import Event, Proposal, RunFolder, write_receipt
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.marking import going_on

if TYPE_CHECKING:
    from dreambooth_core.trainer.decide import Decision
    from dreambooth_core.worker import Runner


@dataclass(kw_only=True)
class Configured(Reporting):
    """A configuration is named, and changed."""

    config: str | None = argument(
        None,
        kind="config file",
        positional=True,
        help="a YAML file; without one, give key=value only",
    )
    overrides: list[str] = argument(
        factory=list, positional=True, metavar="key=value", help="changes to the file"
    )
    preset: list[str] = argument(
        factory=list,
        repeated=True,
        metavar="NAME",
        help="a preset's name or file, below the configuration; again for another",
    )
    going_on: str | None = argument(
        None,
        flags=["--continue"],
        kind="run folder",
        metavar="RUN",
        help="go on from a run's adapter with its marked images, in a new run",
    )


@dataclass(kw_only=True)
class Resuming(Configured):
    """A run is made, or resumed."""

    resume: str | None = argument(
        None, kind="run folder", metavar="RUN", help="resume a run: its folder"
    )


@dataclass(kw_only=True)
class Options(Resuming):
    """What the command takes."""

    prepare: bool = argument(False, help="only make the run's folder, for a worker")
    json: bool = argument(False, help="print events, one JSON object a line")


def run(args: Options) -> int:
    """Trains; returns the exit code."""
    decision = proposal = None
    if args.resume:
        folder, proposal = resumed(args)
    else:
        folder, decision = new_run(args, elsewhere=args.prepare)
    if args.prepare:
        facts = {"run": folder.name, "path": str(folder.path)}
        if proposal is not None:
            facts["proposal"] = str(proposal.path)
        sys.stdout.write((json.dumps(facts) if args.json else str(folder.path)) + "\n")
        return 0
    return train_here(folder, decision, as_json=args.json, proposal=proposal)


def read_by_hand(args: Configured) -> tuple[TrainConfig, set[str]]:
    """The effective configuration, and the keys that a person set."""
    files, overrides = split_arguments(args)
    keys: set[str] = set()
    with _going_on(args.going_on) as before:
        config = load(
            TrainConfig,
            preset=args.preset,
            files=[*before, *files],
            overrides=overrides,
            by_hand=keys,
        )
    return config, keys


@contextmanager
def _going_on(named: str | None) -> Iterator[list[str]]:
    """The configuration of a run that goes on from another, as a file."""
    if named is None:
        yield []
        return
    run = RunFolder.open(named)
    values = {"run.name": run.name, "run.output": str(run.path.parent), **going_on(run)}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        write_json(file, nest(values))
        yield [str(file)]


def split_arguments(args: Configured) -> tuple[list[str], list[str]]:
    """Configuration files and ``key=value`` pairs; the first argument may be either."""
    given = [*([args.config] if args.config else []), *args.overrides]
    files = [a for a in given[:1] if "=" not in a or os.path.isfile(a)]
    return files, given[len(files) :]


def new_run(args: Configured, *, elsewhere: bool = False) -> tuple[RunFolder, Decision]:
    """A new run folder with the effective configuration in it, and what was found out about it.

    Args:
        args: of the command line.
        elsewhere: the run will be in other processes.

    Raises:
        UserError: the run cannot be; nothing was written then.
    """
    config, by_hand = read_by_hand(args)
    load_libraries()
    from dreambooth_core.memory.advice import fit
    from dreambooth_core.trainer.decide import decide

    fitted = fit(config, by_hand, elsewhere=elsewhere)
    decision = decide(fitted.config, elsewhere=elsewhere)
    folder = RunFolder.create(config.run.output, config.run.name)
    write_text(folder.config, dump(decision.config, help=True))
    if fitted.taken:
        write_receipt(folder, memory=fitted.as_dict())
    return folder, decision


def resumed(args: Resuming) -> tuple[RunFolder, Proposal]:
    """The folder of an earlier run, and its configuration updated with what is given now. The
    folder's own changes only when the worker accepts that."""
    folder = RunFolder.open(args.resume or "")
    files, overrides = split_arguments(args)
    if not any(o.startswith("run.resume=") for o in overrides):
        overrides = [*overrides, "run.resume=latest"]
    config = load(TrainConfig, files=[folder.config, *files], overrides=overrides)
    return folder, Proposal.make(folder, {folder.config.name: dump(config, help=True)})


def train_here(
    folder: RunFolder,
    decision: Decision | None = None,
    *,
    as_json: bool = False,
    proposal: Proposal | None = None,
) -> int:
    """Does a run in this process and shows it; returns the exit code.

    Args:
        folder: the run's.
        decision: about its configuration, where it was made already.
        as_json: whether to print events in place of a progress bar.
        proposal: the settings to resume with.
    """
    from dreambooth_core.worker import supervise

    runner: Runner | None = None
    if decision is not None:
        from dreambooth_core.trainer.run import run as train

        runner = partial(train, decision=decision)
    if as_json:
        say = partial(print, flush=True)
        return supervise(
            folder, runner=runner, on_event=lambda event: say(json.dumps(event)), proposal=proposal
        )
    from dreambooth_core.commands.progress import EventPrinter

    printer = EventPrinter()
    endings: list[Event] = []

    def listen(event: Event) -> None:
        printer(event)
        if event["kind"] in ("finished", "error"):
            endings.append(event)

    with printer:
        code = supervise(folder, runner=runner, on_event=listen, proposal=proposal)
    _tell_ending(folder, endings, code, printer.console.print)
    return code


def _tell_ending(
    folder: RunFolder, endings: list[Event], code: int, say: Callable[..., None]
) -> None:
    from dreambooth_core.commands.console import words

    for event in endings:
        if event["kind"] == "error":
            say(words(("failed", "red"), f": {event['message']}"))
        elif event.get("outcome") == "stopped":
            say(words(event.get("message") or "stopped"))
            say(words(f"resume with: dreambooth train --resume {folder.path}"))
        else:
            for result in event.get("results", [])[-1:]:
                say(words(f"result: {folder.path / result}"))
