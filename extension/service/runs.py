"""Runs: starting, watching, asking, resuming, deleting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.commands.evaluate import PAGE
from dreambooth_core.config.describe import flatten
from dreambooth_core.config.loading import mark
from dreambooth_core.config.reading import read_file
from dreambooth_core.disk import remove, write_text
from dreambooth_core.errors import DreamBoothError, UserError
from dreambooth_core.jobs import (
    RunFolder,
    command,
    list_runs,
    sanitise,
    start,
    terminate,
)
from dreambooth_core.jobs.files import to_json
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.marking import generated, going_on

from ..host.base import Host
from . import engine
from .handover import Handover
from .records import read_json
from .results import Results
from .types import Events, Marked, Problem, Report, Status, Values
from .watching import Watcher

log = logging.getLogger("dreambooth")

MARK = "webui.json"
"""In the folder of each run that a host started: what the host owes it."""

ENDED_WELL = ("finished", "stopped")

OURS = ("run.output", "run.name", "run.resume", "run.presets")
"""Values that the service sets itself."""


class Runs:
    """The runs in the host's runs folder."""

    def __init__(self, root: Path, host: Host, handover: Handover, results: Results) -> None:
        self.root = root
        self.host = host
        self.handover = handover
        self.results = results
        self.watcher = Watcher(handover, results)
        handover.ended = self._take_over

    def folder(self, name: str) -> RunFolder:
        """A run by its name; nothing outside the runs folder is ever meant.

        Raises:
            UserError: there is none.
        """
        run = RunFolder(self.host.folders().runs / sanitise(name))
        if sanitise(name) != name or not run.exists():
            raise UserError(f"there is no run named {name!r}")
        return run

    def check(self, values: Values, presets: Sequence[str], problems: list[Problem]) -> Report:
        """What would run. Wrong values are all told at once, by key."""
        values = {key: value for key, value in values.items() if key not in OURS}
        problems += [Problem(key, line) for key, line in mark(TrainConfig, values).items()]
        if problems:
            return Report(problems)
        try:
            with engine.settings_file(values) as file:
                asked = {"config": file, "preset": list(presets)}
                gpu = self.host.memory() is not None
                told = engine.ask(self.root, "check", asked, gpu=gpu)
        except DreamBoothError as error:
            return Report([engine.problem_of(error)])
        effective = told.pop("config", {})
        seconds = self.watcher.forecast(self.host.folders().runs, effective, told.get("steps"))
        return Report([], told, effective, seconds)

    def start(self, values: Values, name: str, presets: Sequence[str]) -> str:
        """Makes a run and hands it over; returns its name.

        Raises:
            UserError: a value is wrong.
        """
        values = {key: value for key, value in values.items() if key not in OURS}
        for line in mark(TrainConfig, values).values():
            raise UserError(line)
        runs = self.host.folders().runs
        values |= {"run.output": str(runs), "run.name": sanitise(name or "run")}
        with engine.settings_file(values) as file:
            asked = {"config": file, "preset": list(presets), "prepare": True}
            told = engine.ask(self.root, "train", asked)
        run = RunFolder(told["path"])
        owed = {"host": self.host.name, "publish": self.host.settings().publish}
        write_text(run.path / MARK, to_json(owed) + "\n")
        self._hand_over(run)
        return run.name

    def resume(self, name: str) -> None:
        """Starts a run again from its last saved step.

        Raises:
            UserError: it is running already.
        """
        run = self.folder(name)
        if self.status(name).live and (run.lock.is_held() or self.handover.waits(run)):
            raise UserError("this run is running already", where=name)
        told = engine.ask(self.root, "train", {"resume": run.path, "prepare": True})
        self._hand_over(run, told.get("proposal"))

    def delete(self, name: str) -> None:
        """Removes a run's folder.

        Raises:
            UserError: it is at work, or a file of it cannot be removed.
        """
        run = self.folder(name)
        if run.lock.is_held() or self.handover.waits(run):
            raise UserError("this run is at work", where=name, do="Stop it first.")
        if not remove(run.path):
            raise UserError("it cannot be deleted", where=run.path, do="Close what has it open.")

    def judged(self, name: str) -> Path | None:
        """The page of a run's evaluation; ``None`` where there is none in its own folder."""
        run = self.folder(name)
        page = run.path / PAGE
        return None if page.is_symlink() or not page.is_file() else page

    def command(self, name: str, verb: str) -> None:
        """Asks a run for something; ``kill`` ends its process.

        Raises:
            UserError: nothing hears it.
        """
        run = self.folder(name)
        stops = verb == "kill" or verb.startswith("stop")
        if stops and self.handover.withdraw(run):
            said = "stopped before it began"
            run.events.write("finished", outcome="stopped", message=said, refused=True)
        elif verb == "kill":
            threading.Thread(target=_kill, args=(run,), daemon=True).start()
        else:
            command(run, verb)

    def status(self, name: str) -> Status:
        """What state a run is in."""
        return self.watcher.status(self.folder(name))

    def events(self, name: str, offset: int = 0) -> Events:
        """What happened since ``offset``. The state is read first: no ending is missed."""
        run = self.folder(name)
        state = self.watcher.status(run)
        events, offset = run.events.read(offset)
        return Events(events, offset, state)

    def all(self) -> list[Status]:
        """The latest first; what is live before what has ended."""
        runs = self.host.folders().runs
        found = [self.watcher.status(RunFolder(run.path)) for run in list_runs(runs)]
        return sorted(found, key=lambda one: not one.live)

    def live(self) -> str:
        """The run at work; else the latest, else empty."""
        found = self.all()
        working = [one for one in found if one.state == "running"]
        return next((one.name for one in [*working, *found]), "")

    def values(self, name: str) -> Values:
        """A run's configuration, without what is its own."""
        values = flatten(read_file(self.folder(name).config, TrainConfig, {}))
        return {key: value for key, value in values.items() if not key.startswith(OURS)}

    def marks(self, name: str) -> list[Marked]:
        """The images of a run that can be marked."""
        run = self.folder(name)
        return [
            Marked(one.image, str(run.samples / one.image), one.prompt, one.seed, one.mark)
            for one in generated(run)
        ]

    def going_on(self, name: str) -> Values:
        """The configuration of a run that goes on with a run's marked images."""
        values = going_on(self.folder(name))
        return {key: value for key, value in values.items() if not key.startswith(OURS)}

    def attach(self) -> None:
        """Takes care of runs that go on, and of those that ended while nobody looked."""
        for one in list_runs(self.host.folders().runs):
            run = RunFolder(one.path)
            if run.lock.is_held():
                self.handover.lend(run, None)
            elif one.state in ENDED_WELL and not self.results.was_published(run):
                self._take_over(run)

    def _hand_over(self, run: RunFolder, proposal: str | None = None) -> None:
        self.handover.lend(run, lambda: start(run, queued=True, proposal=proposal))

    def _take_over(self, run: RunFolder) -> None:
        """Publishes what a run made, if the host owes it that."""
        if self.watcher.status(run).state not in ENDED_WELL:
            return
        if read_json(run.path / MARK).get("publish") and self.results.saved(run):
            self.results.publish(run, None)


def _kill(run: RunFolder) -> None:
    try:
        terminate(run, patience=2.0)
    except DreamBoothError as error:
        log.error("%s: %s", run.name, error.line)
