"""Check, train, and the panel that shows how it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from . import check
from .common import Fresh, button, card, failure, heading, html
from .compat import Component, make, on, update
from .html import Html, note, span
from .live import Watcher, nothing, panel, pictures

VERBS = {
    "sample": "Sample now",
    "save": "Save now",
    "stop": "Save and stop",
    "stop_after_epoch": "Save and stop after this epoch",
    "stop_without_saving": "Stop without saving",
}
"""What a run can be asked, as its buttons say it."""

Reading = Callable[[Sequence[Any]], tuple[dict[str, Any], list[str], list[Any]]]
"""From the values of all inputs: configuration, presets' names, what is wrong."""


class TrainArea:
    """The right side of the page: what is about to run, or runs."""

    def __init__(self, studio: Any, watcher: Watcher, labels: dict[str, str]) -> None:
        self.studio, self.watcher, self.labels = studio, watcher, labels
        with card(elem_id="dreambooth_train_area"):
            heading("4", "Check and train")
            self.name: Component = make(
                "Textbox",
                label="Name",
                info="Of the run and of its result.",
                placeholder="my-dog",
                elem_id="dreambooth_run_name",
            )
            with gr.Row(elem_classes=["db-actions"]):
                self.check = button("Check", elem_id="dreambooth_check")
                self.train = button("Train", elem_id="dreambooth_train", kind="primary")
            self.report: Component = html(elem_id="dreambooth_report")
        with card(elem_id="dreambooth_live_area"):
            self.live: Component = html(nothing(), elem_id="dreambooth_live")
            with gr.Row(visible=False, elem_classes=["db-verbs"]) as self.verbs:
                self.buttons = {
                    verb: button(
                        words,
                        elem_id=f"dreambooth_{verb}",
                        size="sm",
                        kind="stop" if verb == "stop_without_saving" else "secondary",
                        min_width=110,
                    )
                    for verb, words in VERBS.items()
                }
            self.said: Component = html(elem_id="dreambooth_said")
            self.samples: Component = html(elem_id="dreambooth_samples")
        self.run: Component = gr.State("")
        """The run that the panel shows."""
        self.pinned: Component = gr.State("")
        """The run that somebody wants to see, whatever else is at work."""

    def wire(self, inputs: list[Component], read: Reading) -> None:
        """Connects the buttons; ``inputs`` are all controls of the configuration."""

        def checking(*given: Any) -> Html:
            values, presets, wrong = read(given)
            if wrong:
                return check.problems(wrong, self.labels)
            try:
                return check.report(self.studio.check(values, presets), self.labels)
            except DreamBoothError as error:
                return failure(error, self.labels)

        def starting(name: str, *given: Any) -> list[Any]:
            values, presets, wrong = read(given)
            if wrong:
                return [check.problems(wrong, self.labels), update(), update()]
            try:
                started = self.studio.start(values, (name or "").strip(), presets)
            except DreamBoothError as error:
                return [failure(error, self.labels), update(), update()]
            return [note("good", span("", started), " ", span("", "starts")), started, ""]

        on(self.check.click, checking, inputs, [self.report])
        on(self.train.click, starting, [self.name, *inputs], [self.report, self.run, self.pinned])
        for verb, pressed in self.buttons.items():
            on(pressed.click, self._asker(verb), [self.run], [self.said], quiet=True)

    def _asker(self, verb: str) -> Callable[[str], Html]:
        meaning = self.studio.verbs().get(verb, "")

        def ask(run: str) -> Html:
            try:
                self.studio.runs.command(run, verb)
            except DreamBoothError as error:
                return failure(error)
            return note("info", span("", "Asked:"), " ", span("", meaning))

        return ask

    def look(self, run: str, pinned: str, fresh: Fresh) -> list[Any]:
        """Updates for :meth:`outputs`: the run that is at work, else the one shown last."""
        try:
            run = pinned or self._which(run)
            if not run:
                return ["", "", fresh.value("live", nothing()), *self._quiet(fresh)]
            status, watched = self.watcher.look(run)
        except DreamBoothError as error:  # deleted meanwhile
            return ["", "", fresh.value("live", failure(error)), *self._quiet(fresh)]
        shown = tuple(status.samples[-12:])
        images = update() if fresh.seen.get("images") == shown else update(value=pictures(shown))
        fresh.seen["images"] = shown
        said = update() if status.live else fresh.value("said", "")
        return [
            run,
            pinned,
            fresh.value("live", panel(status, watched)),
            fresh.visible("verbs", status.live),
            said,
            images,
        ]

    def _which(self, run: str) -> str:
        """A live run that the page shows already stays; else the one that is live, or the last."""
        if run and self.studio.runs.status(run).live:
            return run
        live = str(self.studio.runs.live() or "")
        if live and (not run or self.studio.runs.status(live).live):
            return live
        return run

    def _quiet(self, fresh: Fresh) -> list[Any]:
        return [fresh.visible("verbs", False), fresh.value("said", ""), fresh.value("images", "")]

    def outputs(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.run, self.pinned, self.live, self.verbs, self.said, self.samples]
