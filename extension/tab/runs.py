"""All runs: history and queue, resume, compare, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .common import Fresh, button, card, failure, heading, hidden_text, html
from .compat import Component, make, on, update
from .html import Html, bar, chip, div, duration, join, note, picture, span, tag
from .live import STATES

COLUMNS = ("Run", "State", "Steps", "Loss", "Time", "Method", "Base", "Last heard of")
MOST_COLUMNS = 6
"""Steps in a row of the grid."""


class RunsPage:
    """The page of runs."""

    def __init__(self, studio: Any) -> None:
        self.studio = studio
        with card(elem_id="dreambooth_runs_area"):
            heading("", "Runs", "Every training, also those of the queue; it is one at a time.")
            self.table: Component = html(elem_id="dreambooth_runs")
            self.chosen: Component = hidden_text("dreambooth_chosen_run")
            self.about: Component = html(elem_id="dreambooth_run_about")
            with gr.Row(elem_classes=["db-actions"], visible=False) as self.actions:
                self.show = button("Show", elem_id="dreambooth_run_show", min_width=90)
                self.settings = button(
                    "Use its settings", elem_id="dreambooth_run_settings", min_width=130
                )
                self.resume = button("Resume", elem_id="dreambooth_run_resume", min_width=90)
                self.kill = button("End its process", elem_id="dreambooth_run_kill", min_width=120)
                self.delete = button("Delete …", elem_id="dreambooth_run_delete", min_width=90)
            with gr.Row(visible=False, elem_classes=["db-question"]) as self.question:
                self.asked: Component = html()
                self.yes = button("Delete it", elem_id="dreambooth_delete_yes", kind="stop")
                self.no = button("Keep it", elem_id="dreambooth_delete_no")
            self.said: Component = html(elem_id="dreambooth_runs_said")
        with card(elem_id="dreambooth_compare_area"):
            heading("", "Compare", "The same prompt and seed, run by run and step by step.")
            with gr.Row(elem_classes=["db-row", "db-with-tool"]):
                self.several: Component = make(
                    "Dropdown",
                    label="Runs",
                    choices=[],
                    value=[],
                    multiselect=True,
                    elem_id="dreambooth_compare_runs",
                    interactive=True,
                    scale=5,
                )
                self.compare = button(
                    "Compare", elem_id="dreambooth_compare", scale=0, min_width=120
                )
            self.grid: Component = html(elem_id="dreambooth_grid")
        self._wire()

    def _wire(self) -> None:
        seen = [self.about, self.actions, self.question, self.said]
        on(self.chosen.change, self._choose, [self.chosen], seen, quiet=True)
        on(self.resume.click, self._act("resume", "goes on"), [self.chosen], [self.said])
        on(self.kill.click, self._kill, [self.chosen], [self.said])
        on(self.delete.click, self._ask, [self.chosen], [self.question, self.asked])
        on(self.no.click, lambda: update(visible=False), [], [self.question], quiet=True)
        gone = [self.said, self.question, self.actions, self.about]
        on(self.yes.click, self._delete, [self.chosen], gone)
        on(self.compare.click, self._compare, [self.several], [self.grid])

    def look(self, fresh: Fresh) -> list[Any]:
        """Updates for :meth:`outputs`."""
        try:
            found = self.studio.runs()
        except DreamBoothError as error:
            return [fresh.value("runs", failure(error)), update()]
        names = [each.name for each in found]
        choices = update() if fresh.seen.get("names") == names else update(choices=names)
        fresh.seen["names"] = names
        return [fresh.value("runs", table(found)), choices]

    def outputs(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.table, self.several]

    def _choose(self, run: str) -> list[Any]:
        try:
            status = self.studio.status(run)
        except DreamBoothError as error:
            return [failure(error), update(visible=False), update(visible=False), ""]
        return [about(status), update(visible=True), update(visible=False), ""]

    def _act(self, name: str, done: str) -> Any:
        def act(run: str) -> Html:
            try:
                getattr(self.studio, name)(run)
            except DreamBoothError as error:
                return failure(error)
            return note("good", span("", run), " ", span("", done))

        return act

    def _kill(self, run: str) -> Html:
        try:
            self.studio.command(run, "kill")
        except DreamBoothError as error:
            return failure(error)
        return note("info", span("", run), " ", span("", "its process ends"))

    def _ask(self, run: str) -> list[Any]:
        words = join(
            [
                span("", "Delete this run and everything in its folder?"),
                " ",
                span("db-code", run),
                " ",
                span("", "What the WebUI lists of it stays."),
            ]
        )
        return [update(visible=True), note("warning", words)]

    def _delete(self, run: str) -> list[Any]:
        try:
            self.studio.delete(run)
        except DreamBoothError as error:
            return [failure(error), update(visible=False), update(), update()]
        said = note("good", span("", run), " ", span("", "deleted"))
        return [said, update(visible=False), update(visible=False), ""]

    def _compare(self, names: Sequence[str] | None) -> Html:
        try:
            found = [(name, self.studio.status(name).samples) for name in names or []]
        except DreamBoothError as error:
            return failure(error)
        return grid(found)


def table(found: Sequence[Any]) -> Html:
    """Runs as rows; a click on a name chooses it."""
    if not found:
        return div("db-muted", "No runs yet.")
    head = tag("tr", *(tag("th", name) for name in COLUMNS))
    live = any(each.live for each in found)
    return tag("table", head, *map(_row, found), cls="db-table", data_live="1" if live else "0")


def _row(run: Any) -> Html:
    steps = f"{run.step} / {run.steps}" if run.steps else ""
    end = run.ended or run.updated
    lasted = duration(end - run.started) if run.started and end else ""
    cells = (
        tag("button", run.name, cls="db-link", data_choose=run.name),
        chip(run.state, STATES.get(run.state)),
        join([steps, bar(run.step / run.steps, busy=run.live) if run.steps else ""]),
        f"{run.loss:.4f}" if run.loss is not None else "",
        lasted,
        run.method,
        run.base,
        _when(run.updated or run.created),
    )
    return tag("tr", *(tag("td", cell) for cell in cells))


def about(run: Any) -> Html:
    """What else is known of a run: messages, results, the latest pictures."""
    names = [span("db-code", name) for name in run.published]
    figures = [picture(path, side=160) for path in run.samples[-6:]]
    return div(
        "db-run",
        div("db-head", span("db-run-name", run.name), chip(run.state, STATES.get(run.state))),
        div("db-muted", run.path),
        note("wrong" if run.state in ("failed", "lost") else "info", run.message)
        if run.message
        else "",
        div("db-files", *names) if names else "",
        div("db-pictures", *figures) if figures else "",
    )


def grid(found: Sequence[tuple[str, Sequence[str]]]) -> Html:
    """A row for each run, a column for each of some steps, as evenly spaced as they come."""
    rows = []
    for name, samples in found:
        paths = _spread(list(samples), MOST_COLUMNS)
        cells = [tag("td", picture(path, side=192, caption=_step(path))) for path in paths]
        rows.append(tag("tr", tag("th", name), *(cells or [tag("td", "No samples")])))
    if not rows:
        return note("info", "Choose runs first.")
    return div("db-scroll", tag("table", *rows, cls="db-grid-table"))


def _spread(paths: list[str], most: int) -> list[str]:
    if len(paths) <= most:
        return paths
    return [paths[round(n * (len(paths) - 1) / (most - 1))] for n in range(most)]


def _step(path: str) -> str:
    digits = "".join(c if c.isdigit() else " " for c in path.replace("\\", "/").split("/")[-1])
    return str(int(digits.split()[0])) if digits.split() else ""


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else ""
