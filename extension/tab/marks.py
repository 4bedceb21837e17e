"""Images of the run that is shown, called good or bad with a click, and going on from there."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .common import Fresh, button, card, failure, heading, hidden_text, html
from .compat import Component, on, update
from .history import marked


class MarksArea:
    """Marks, and the button that fills the form with the run that goes on."""

    def __init__(self, studio: Any, run: Component) -> None:
        self.studio, self.run = studio, run
        with card(elem_id="dreambooth_marks_area", visible=False) as self.box:
            heading("6", "Good and bad", "A click marks an image: good, bad, nothing.")
            self.images: Component = html(elem_id="dreambooth_marks")
            with gr.Row(elem_classes=["db-actions"]):
                self.go_on = button(
                    "Continue from here", elem_id="dreambooth_continue", size="sm", min_width=130
                )
            self.said: Component = html(elem_id="dreambooth_marks_said")
            self.clicked: Component = hidden_text("dreambooth_marked")
        on(
            self.clicked.change,
            self._mark,
            [run, self.clicked],
            [self.images, self.said],
            quiet=True,
        )

    def look(self, run: str, fresh: Fresh) -> list[Any]:
        """Updates for :meth:`outputs`. Images are looked for only when there may be new ones."""
        try:
            status = self.studio.runs.status(run) if run else None
            key = (run, len(status.samples), status.state) if status else ("",)
            if fresh.seen.get("marks") == key:
                return [update() for _ in self.outputs()]
            found = self.studio.runs.marks(run) if status else []
        except DreamBoothError:
            key, found = ("",), []
        fresh.seen["marks"] = key
        return [update(visible=bool(found)), marked(found), ""]

    def outputs(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.box, self.images, self.said]

    def _mark(self, run: str, clicked: str) -> list[Any]:
        try:
            name, mark = json.loads(clicked) if clicked else ("", "")
            if name:
                self.studio.mark(run, str(name), str(mark))
            return [marked(self.studio.runs.marks(run)), ""]
        except DreamBoothError as error:
            return [update(), failure(error)]
        except ValueError:
            return [update(), update()]
