"""All runs: history and queue, resume, compare, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dreambooth_core.commands.evaluate import KINDS
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import DreamBoothError

from .common import Fresh, button, card, failure, heading, hidden_text, html
from .compat import Component, make, on, update
from .history import about, evaluation, grid, table
from .html import Html, div, join, note, span
from .tasks import task_list

ABOUT_EVALUATION = (
    "Images of 25 prompts from the base and from this run, judged for likeness, prompt, class and "
    "variety. Minutes to an hour; encoders that are not here are left out unless they are fetched."
)
LARGEST_PAGE = 64 << 20
"""Bytes of an evaluation's page, with its images."""


class RunsPage:
    """The page of runs."""

    def __init__(self, studio: Any) -> None:
        self.studio = studio
        with card(elem_id="dreambooth_runs_area"):
            heading("", "Runs", "All trainings, queued ones too; one runs at a time.")
            self.table: Component = html(elem_id="dreambooth_runs")
            self.chosen: Component = hidden_text("dreambooth_chosen_run")
            self.about: Component = html(elem_id="dreambooth_run_about")
            with gr.Row(elem_classes=["db-compact"], visible=False) as self.actions:
                self.show = button("Show", elem_id="dreambooth_run_show", size="sm")
                self.settings = button(
                    "Use its settings", elem_id="dreambooth_run_settings", size="sm"
                )
                self.resume = button("Resume", elem_id="dreambooth_run_resume", size="sm")
                self.evaluation = button(
                    "Show evaluation", elem_id="dreambooth_run_evaluation", size="sm"
                )
                self.kill = button("End its process", elem_id="dreambooth_run_kill", size="sm")
                self.delete = button("Delete …", elem_id="dreambooth_run_delete", size="sm")
            with gr.Column(visible=False) as self.judging:
                self._evaluating()
            with gr.Row(visible=False, elem_classes=["db-compact"]) as self.question:
                self.asked: Component = html()
                self.yes = button(
                    "Delete it", elem_id="dreambooth_delete_yes", kind="stop", size="sm"
                )
                self.no = button("Keep it", elem_id="dreambooth_delete_no", size="sm")
            self.said: Component = html(elem_id="dreambooth_runs_said")
            self.page: Component = html(elem_id="dreambooth_evaluation")
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

    def _evaluating(self) -> None:
        with gr.Accordion("Evaluate", open=False, elem_classes=["db-accordion"]):
            gr.HTML(div("db-help", ABOUT_EVALUATION))
            with gr.Row(elem_classes=["db-row"]):
                self.kind: Component = make(
                    "Radio",
                    label="What was learned",
                    choices=list(KINDS),
                    value=KINDS[0],
                    elem_id="dreambooth_evaluate_kind",
                    interactive=True,
                )
                self.saves: Component = make("Checkbox", label="Every saved step", value=False)
                self.download: Component = make(
                    "Checkbox", label="Fetch encoders (CLIP 605 MB, DINO 88 MB)", value=False
                )
            self.evaluate = button("Evaluate", elem_id="dreambooth_evaluate", size="sm")
            self.judged: Component = html(elem_id="dreambooth_evaluations")

    def _wire(self) -> None:
        seen = [self.about, self.actions, self.judging, self.question, self.said]
        seen += [self.page, self.resume, self.kill]
        asked = [self.chosen, self.kind, self.saves, self.download]
        on(self.evaluate.click, self._evaluate, asked, [self.said])
        on(self.evaluation.click, self._evaluation, [self.chosen], [self.page])
        on(self.chosen.change, self._choose, [self.chosen], seen, quiet=True)
        on(
            self.resume.click,
            self._act(self.studio.runs.resume, "resumes"),
            [self.chosen],
            [self.said],
        )
        on(self.kill.click, self._kill, [self.chosen], [self.said])
        on(self.delete.click, self._ask, [self.chosen], [self.question, self.asked])
        on(self.no.click, lambda: update(visible=False), [], [self.question], quiet=True)
        gone = [self.said, self.question, self.actions, self.judging, self.about, self.page]
        on(self.yes.click, self._delete, [self.chosen], gone)
        on(self.compare.click, self._compare, [self.several], [self.grid])

    def look(self, fresh: Fresh) -> list[Any]:
        """Updates for :meth:`outputs`."""
        try:
            found = self.studio.runs.all()
        except DreamBoothError as error:
            return [fresh.value("runs", failure(error)), update(), update()]
        names = [each.name for each in found]
        choices = update() if fresh.seen.get("names") == names else update(choices=names)
        fresh.seen["names"] = names
        judging = [task for task in self.studio.tools.tasks() if task.tool == "evaluate"]
        evaluations = task_list(judging) if judging else ""
        return [
            fresh.value("runs", table(found)),
            choices,
            fresh.value("evaluations", evaluations),
        ]

    def outputs(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.table, self.several, self.judged]

    def _choose(self, run: str) -> list[Any]:
        try:
            status = self.studio.runs.status(run)
        except DreamBoothError as error:
            hidden = update(visible=False)
            return [failure(error), hidden, hidden, hidden, "", "", update(), update()]
        return [
            about(status),
            update(visible=True),
            update(visible=not status.live),
            update(visible=False),
            "",
            "",
            update(visible=not status.live),
            update(visible=status.live),
        ]

    def _act(self, do: Callable[[str], None], done: str) -> Any:
        def act(run: str) -> Html:
            try:
                do(run)
            except DreamBoothError as error:
                return failure(error)
            return note("good", span("", run), " ", span("", done))

        return act

    def _kill(self, run: str) -> Html:
        try:
            self.studio.runs.command(run, "kill")
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
            self.studio.runs.delete(run)
        except DreamBoothError as error:
            return [failure(error), update(visible=False), *(update() for _ in range(4))]
        said = note("good", span("", run), " ", span("", "deleted"))
        hidden = update(visible=False)
        return [said, hidden, hidden, hidden, "", ""]

    def _evaluate(self, run: str, kind: str, saves: bool, download: bool) -> Html:
        try:
            self.studio.evaluate(run, kind=kind, saves=bool(saves), download=bool(download))
        except DreamBoothError as error:
            return failure(error)
        return note("info", span("", run), " ", span("", "is being evaluated"))

    def _evaluation(self, run: str) -> Html:
        try:
            content = read_bytes(self.studio.evaluation(run), LARGEST_PAGE)
        except DreamBoothError as error:
            return failure(error)
        return evaluation(content.decode("utf-8", "replace"))

    def _compare(self, names: Sequence[str] | None) -> Html:
        try:
            found = [(name, self.studio.runs.status(name).samples) for name in names or []]
        except DreamBoothError as error:
            return failure(error)
        return grid(found)
