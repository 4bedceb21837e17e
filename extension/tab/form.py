"""The engine's configuration as controls. Labels, help, ranges and choices come from the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from . import values
from .compat import Component, Update, make, update
from .values import Spec, Wrong

HIDDEN = frozenset({"base.model", "run.output", "run.resume", "run.presets"})
"""What the tab decides itself: by the list of checkpoints, the runs folder, the Runs page."""


class Form:
    """The controls of a configuration, by dotted key.

    :meth:`field` draws one where it is wanted; :meth:`section` draws what is left of a section,
    so that every option is somewhere, and none twice.
    """

    def __init__(self, description: Mapping[str, Any], apart: Iterable[str] = ()) -> None:
        """``apart``: options that have a place of their own, outside of their section."""
        self.apart = frozenset(apart)
        self.sections: dict[str, Spec] = {
            child["key"]: child for child in description["children"] if child["type"] == "section"
        }
        self.specs: dict[str, Spec] = {
            spec["key"]: spec
            for section in self.sections.values()
            for spec in _fields(section)
            if spec["key"] not in HIDDEN
        }
        self.controls: dict[str, Component] = {}

    def field(self, key: str, **changes: Any) -> Component:
        """Draws the control of one option, here."""
        assert key not in self.controls, f"{key} is drawn already"
        control = draw(self.specs[key], **changes)
        self.controls[key] = control
        return control

    def row(self, *keys: str) -> None:
        """Draws several side by side."""
        with gr.Row(elem_classes=["db-row"]):
            for key in keys:
                self.field(key)

    def section(self, name: str) -> None:
        """Draws an accordion with all options of a section that are nowhere else yet."""
        spec = self.sections[name]
        left = [each for each in _fields(spec) if self._is_left(each["key"])]
        if not left:
            return
        with gr.Accordion(spec["label"], open=False, elem_classes=["db-accordion"]):
            gr.HTML(f'<div class="db-help">{spec["help"]}</div>')
            self._rows([each for each in left if not each["advanced"]])
            advanced = [each for each in left if each["advanced"]]
            if advanced:
                with gr.Accordion("More", open=False, elem_classes=["db-accordion", "db-more"]):
                    self._rows(advanced)

    def inputs(self) -> list[Component]:
        """All controls, in the order in which :meth:`read` takes their values."""
        return list(self.controls.values())

    def shown(self, given: Sequence[Any]) -> dict[str, Any]:
        """What a handler was given, by key."""
        return dict(zip(self.controls, given, strict=True))

    def read(
        self, given: Sequence[Any], presets: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Wrong]]:
        """The values that differ from what the presets set, and what is wrong."""
        found, wrong = values.read(self.specs, self.shown(given))
        return values.changed(self.specs, found, presets), wrong

    def as_shown(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """What every control shows for a configuration; defaults for what it does not set."""
        return {
            key: values.to_control(self.specs[key], flat.get(key, self.specs[key].get("default")))
            for key in self.controls
        }

    def updates(self, shown: Mapping[str, Any]) -> list[Update]:
        """What a handler returns for :meth:`inputs`; controls that are not named stay."""
        return [update(value=shown[key]) if key in shown else update() for key in self.controls]

    def _is_left(self, key: str) -> bool:
        return key in self.specs and key not in self.controls and key not in self.apart

    def _rows(self, specs: Iterable[Spec]) -> None:
        """Two in a row; boxes of several lines by themselves."""
        waiting: list[Spec] = []
        for spec in specs:
            if values.kind_of(spec) == "lines":
                self.field(spec["key"])
                continue
            waiting.append(spec)
            if len(waiting) == 2:
                self.row(*(each["key"] for each in waiting))
                waiting = []
        if waiting:
            self.row(waiting[0]["key"])


def draw(spec: Spec, key: str | None = None, **changes: Any) -> Component:
    """The control of a field; ``key`` where it is one of several, as ``concepts[0].images``."""
    kind = values.kind_of(spec)
    default = spec.get("default")
    common: dict[str, Any] = {
        "label": spec["label"],
        "info": values.help_of(spec),
        "value": values.to_control(spec, default),
        "elem_id": values.element_id(key or spec["key"]),
        "interactive": True,
        "scale": 1,
        "min_width": 220,
    }
    common.update(changes)
    if kind == "checkbox":
        return make("Checkbox", **common)
    if kind == "dropdown":
        common["allow_custom_value"] = spec["open"]
        return make("Dropdown", choices=list(spec["choices"]), **common)
    if kind == "slider":
        bounds = {"minimum": spec["minimum"], "maximum": spec["maximum"]}
        return make("Slider", **bounds, step=values.slider_step(spec), **common)
    if kind == "number":
        return make("Number", **common)
    lines = 3 if kind == "lines" else 1
    return make("Textbox", lines=lines, max_lines=12 if lines > 1 else 1, **common)


def _fields(section: Spec) -> Iterator[Spec]:
    """A section's options, those of the sections in it included."""
    for child in section["children"]:
        if child["type"] == "section":
            yield from _fields(child)
        else:
            yield child
