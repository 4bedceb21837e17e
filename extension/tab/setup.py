"""Before anything else: the engine's environment. Nothing that cannot work yet is offered."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .common import button, card, failure, heading, html
from .compat import Component, on
from .html import Html, bar, div, facts, join, note, span, tag

KEPT_LINES = 200


class Setup:
    """The page that is shown alone until the engine is ready."""

    def __init__(self, studio: Any, *, visible: bool) -> None:
        self.studio = studio
        self._lines: list[str] = []
        self._offset = 0
        with card(elem_id="dreambooth_setup", visible=visible) as self.page:
            heading(
                "",
                "Set up the training engine",
                "It gets a Python environment of its own. Nothing of the WebUI's is changed.",
            )
            self.state: Component = html(self.told(), elem_id="dreambooth_setup_state")
            with gr.Row():
                self.begin = button(
                    "Download and set up", elem_id="dreambooth_setup_begin", kind="primary"
                )
                self.cancel = button(
                    "Cancel", elem_id="dreambooth_setup_cancel", kind="stop", visible=False
                )
        on(self.begin.click, self._begin, [], [self.state])
        on(self.cancel.click, self._cancel, [], [self.state])

    def _begin(self) -> Html:
        try:
            self._lines, self._offset = [], 0
            self.studio.setup.build()
        except DreamBoothError as error:
            return join([self.told(), failure(error)])
        return self.told()

    def _cancel(self) -> Html:
        try:
            self.studio.setup.cancel()
        except DreamBoothError as error:
            return join([self.told(), failure(error)])
        return self.told()

    def told(self) -> Html:
        """What would be downloaded, or how it goes, or how it ended."""
        environment = self.studio.setup.state()
        if environment.ready:
            return note("good", "The engine is ready.")
        plan = self._plan(environment)
        log = self.studio.setup.log(self._offset)
        if log.offset < self._offset:  # a new installation
            self._lines = []
        self._lines = [*self._lines, *log.lines][-KEPT_LINES:]
        self._offset = log.offset
        if not (environment.building or self._lines):
            return plan
        return join([plan, self._progress(log, building=environment.building)])

    def _plan(self, environment: Any) -> Html:
        plan = environment.plan
        if plan is None:
            return facts([("Folder", environment.home)])
        if plan.problem:
            return note("wrong", plan.problem)
        rows: list[tuple[str, object]] = [
            ("Download", f"{plan.megabytes / 1000:.1f} GB"),
            ("Room on the disk", _room(plan)),
            ("From", join([div("", source) for source in plan.sources])),
            ("Into", environment.home),
            ("PyTorch", plan.torch),
            ("Because", plan.because),
            ("Now", environment.reason),
        ]
        return join([facts(rows), note("warning", plan.warning) if plan.warning else ""])

    def _progress(self, log: Any, *, building: bool) -> Html:
        share = log.done / log.total if log.total else 0.0
        ended: Any = ""
        if log.ok is False and not building:
            ended = note("wrong", "It did not work; the last lines say why. You can try again.")
        return div(
            "db-setup-progress",
            div("db-stage", log.step),
            bar(share, busy=building),
            tag("pre", "\n".join(self._lines), cls="db-log"),
            ended,
            data_live="1" if building else "0",
        )


def _room(plan: Any) -> Html:
    """What is needed beside what is there; marked where that is too little."""
    little = plan.free_megabytes < plan.disk_megabytes
    return div(
        "db-short" if little else "",
        f"{plan.disk_megabytes / 1000:.1f} GB",
        " ",
        span("db-muted", f"({plan.free_megabytes / 1000:.1f} GB free)"),
    )
