"""How it is learned: presets for the method and the memory, and every option below them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .common import button, card, failure, heading, hidden_text, html
from .compat import Component, make, on, update
from .form import Form
from .html import Html, div, join, note, span
from .values import overlay

SECTIONS = (
    "method", "optim", "objective", "memory", "run", "save", "validation", "log", "publish",
)  # fmt: skip
"""Accordions, in the order in which people want them."""

ESSENTIALS = (
    ("run.steps", "optim.learning_rate", "method.rank"),
    ("data.resolution", "run.batch_size", "method.train_text_encoder"),
)
"""What people change most, row by row."""

APART = ("memory.budget", *(key for row in ESSENTIALS for key in row))
"""Options that stand above their sections."""

AUTO = "Automatic"


@dataclass(frozen=True)
class Layer:
    """The presets that are in effect; what differs from them was set by hand."""

    names: list[str]
    values: dict[str, Any]

    def written(self) -> str:
        """As text."""
        return json.dumps({"names": self.names, "values": self.values})

    @classmethod
    def read(cls, text: str) -> Layer:
        """From :meth:`written`; without presets where there is none yet."""
        found = json.loads(text) if text else {"names": [], "values": {}}
        return cls(found["names"], found["values"])


class MethodArea:
    """Presets, the few values that matter most, and accordions with all others."""

    def __init__(self, studio: Any, form: Form) -> None:
        self.studio, self.form = studio, form
        with card(elem_id="dreambooth_method_area"):
            heading("3", "Method and memory", "Start with the preset; change what you like.")
            form.field("method.kind")
            with gr.Row(elem_classes=["db-row"]):
                self.recipe: Component = make(
                    "Dropdown",
                    label="Preset",
                    choices=[AUTO],
                    value=AUTO,
                    elem_id="dreambooth_preset",
                    info="Automatic follows kind, method and base.",
                    interactive=True,
                )
                form.field("memory.budget")
            self.about: Component = html(elem_id="dreambooth_preset_about")
            for keys in ESSENTIALS:
                form.row(*keys)
            for name in SECTIONS:
                form.section(name)
            self._own_presets()
        self.layer: Component = hidden_text("dreambooth_layer")
        """The presets below the form, as JSON: see :class:`Layer`. In the page, not in a state of
        the server: so that a handler always gets it as it was when the form was read."""

    def _own_presets(self) -> None:
        with gr.Accordion("Your presets", open=False, elem_classes=["db-accordion"]):
            gr.HTML(div("db-help", "Saved presets are listed under Preset. Images stay out."))
            with gr.Row(elem_classes=["db-row", "db-with-tool"]):
                self.name: Component = make(
                    "Textbox", label="Preset name", elem_id="dreambooth_preset_name", scale=4
                )
                self.save = button(
                    "Save preset", elem_id="dreambooth_preset_save", scale=1, min_width=110
                )
                self.delete = button(
                    "Delete preset", elem_id="dreambooth_preset_delete", scale=1, min_width=110
                )
            self.said: Component = html()

    def names(self, family: str, method: str, recipe: str) -> Any:
        """The list's choices for a family and a method; a choice that still is one stays."""
        found = self.studio.presets.all()
        names = [*_fitting(found, "own"), *_fitting(found, "recipe", _ending(method, family))]
        return update(choices=[AUTO, *names], value=recipe if recipe in names else AUTO)

    def chosen(self, kind: str, method: str, family: str, recipe: str) -> tuple[list[str], Html]:
        """The presets that are in effect, in words, and the memory that there is."""
        found = self.studio.presets.all()
        mine = _fitting(found, "own")
        if recipe not in mine and (recipe == AUTO or not recipe.endswith(_ending(method, family))):
            recipe = self.studio.presets.recipe(kind, short(method), family)
        names = [recipe] if recipe else []
        reason = self.studio.presets.memory_choice().reason
        abouts = {each.name: each.about for each in found}
        lines = [
            div("db-preset", span("db-chip db-is-preset", name), span("", abouts.get(name, "")))
            for name in names
        ]
        return names, join([*lines, note("info", span("", reason))])

    def values(self, names: list[str]) -> dict[str, Any]:
        """What these presets set, the later over the earlier."""
        merged: dict[str, Any] = {}
        for name in names:
            merged.update(self.studio.presets.values(name))
        return merged

    def follow(
        self,
        kind: str,
        family: str,
        recipe: str,
        layer: str,
        *given: Any,
    ) -> list[Any]:
        """Puts the presets' values into the form; what was set by hand stays.

        Returns:
            Updates for :meth:`outputs`.
        """
        shown = self.form.shown(given)
        method = str(shown["method.kind"])
        try:
            names, about = self.chosen(kind, method, family, recipe)
            merged = self.values(names)
        except DreamBoothError as error:
            return [*self.form.updates({}), update(), failure(error)]
        after = self.form.as_shown(merged)
        # The user's own presets are taken whole: that is what they were saved for.
        own = recipe in _fitting(self.studio.presets.all(), "own")
        before = shown if own else self.form.as_shown(Layer.read(layer).values)
        if not own:
            after["method.kind"] = method  # it chose the preset, and not the other way round
        new = overlay(shown, before, after)
        return [*self.form.updates(new), Layer(names, merged).written(), about]

    def outputs(self) -> list[Component]:
        """What :meth:`follow` updates."""
        return [*self.form.inputs(), self.layer, self.about]

    def keep(self, name: str, *given: Any) -> list[Any]:
        """Saves all that differs from the engine's defaults as the user's own preset."""
        found, wrong = self.form.read(given, {})
        if wrong:
            return [note("wrong", wrong[0].label, " ", wrong[0].message), update()]
        if not (name or "").strip():
            return [note("wrong", "A preset needs a name."), update()]
        try:
            kept = self.studio.presets.save(name.strip(), found)
        except DreamBoothError as error:
            return [failure(error), update()]
        return [note("good", span("", kept.name), " ", span("", "saved")), self._lists()]

    def remove(self, name: str) -> list[Any]:
        """Deletes one of the user's own presets."""
        try:
            self.studio.presets.delete((name or "").strip())
        except DreamBoothError as error:
            return [failure(error), update()]
        return [note("good", span("", name), " ", span("", "deleted")), self._lists()]

    def _lists(self) -> Any:
        """The list of presets anew; the choice stays."""
        found = self.studio.presets.all()
        return update(choices=[AUTO, *_fitting(found, "own"), *_fitting(found, "recipe")])

    def wire(self) -> None:
        """The buttons of the user's own presets; the form has to be complete."""
        out = [self.said, self.recipe]
        on(self.save.click, self.keep, [self.name, *self.form.inputs()], out)
        on(self.delete.click, self.remove, [self.name], out)


def short(method: str) -> str:
    """The method as presets are named: adapters of every kind are ``lora``."""
    return "full" if method == "full" else "lora"


def _ending(method: str, family: str) -> str:
    """What the names of the presets for a method and a family end with."""
    return f"-{short(method)}-{family}"


def _fitting(presets: Any, kind: str, ending: str = "") -> list[str]:
    return [each.name for each in presets if each.kind == kind and each.name.endswith(ending)]
