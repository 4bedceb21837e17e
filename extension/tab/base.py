"""What training starts from: any checkpoint that the host lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.bases.embedded import EMBEDDED
from dreambooth_core.errors import DreamBoothError

from .common import button, card, failure, heading, html
from .compat import Component, make, on, update
from .html import Html, chip, div, join, note, span


class BaseArea:
    """The base and what it is."""

    def __init__(self, studio: Any, form: Any) -> None:
        self.studio = studio
        with card(elem_id="dreambooth_base_area"):
            heading("2", "Base", "The model that training starts from.")
            with gr.Row(elem_classes=["db-row", "db-with-tool"]):
                self.choice: Component = make(
                    "Dropdown",
                    label="Base model",
                    info="A checkpoint of the WebUI, or the path of a model.",
                    choices=[],
                    value=None,
                    allow_custom_value=True,
                    elem_id="dreambooth_field_base_model",
                    interactive=True,
                )
                self.refresh = button(
                    "Refresh", elem_id="dreambooth_base_refresh", scale=0, min_width=90
                )
            self.about: Component = html(
                div("db-muted", "Looks at the model …"), elem_id="dreambooth_base_about"
            )
            form.section("base")
        self.family: Component = gr.State("sd1")
        on(self.refresh.click, self.names, [self.choice], [self.choice], quiet=True)

    def names(self, chosen: str | None) -> Any:
        """The list anew; what was chosen stays, else the host's current checkpoint."""
        try:
            names = [base.name for base in self.studio.bases.all()]
            chosen = chosen or self.studio.bases.current().name
        except DreamBoothError:
            return update()
        return update(choices=names, value=chosen)

    def path(self, chosen: str | None) -> str:
        """The value of ``base.model`` for what is chosen."""
        for base in self.studio.bases.all():
            if chosen == base.name:
                return str(base.path)
        return (chosen or "").strip()

    def describe(self, chosen: str | None) -> tuple[Html, str]:
        """Family and prediction type of the choice, and the family for presets."""
        if not chosen:
            return note("info", "Choose a base."), "sd1"
        try:
            info = self.studio.base_info(chosen)
        except DreamBoothError as error:
            return failure(error), "sd1"
        if not info.trainable:
            return note("wrong", info.problem), info.family or "sd1"
        about: list[Any] = []
        if info.parts:
            files = [Path(str(each)).name for value in info.parts.values() for each in _each(value)]
            about.append(note("info", span("", "With"), " ", span("db-code", ", ".join(files))))
        if info.path in EMBEDDED:
            about.append(
                note("info", "A tiny model that comes with the engine, to try training in minutes.")
            )
            if all(base.path in EMBEDDED for base in self.studio.bases.all()):
                folder = self.studio.host.folders().checkpoints
                words = "The WebUI lists no model. Put one into this folder and press Refresh:"
                about.append(note("info", span("", words), " ", span("db-code", folder)))
        words = div(
            "db-base",
            chip("family", info.label or info.family),
            span("db-muted", info.prediction_type) if info.prediction_type else "",
        )
        return join([words, *about]), info.family or "sd1"


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
