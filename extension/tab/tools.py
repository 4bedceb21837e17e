"""Adapters and models: each tool's controls come from the command line's own description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .common import button, card, failure, heading, html
from .compat import Component, make, on, update
from .html import Html, div, note, tag
from .tasks import HELP, TITLES, inspected

ADAPTER_TOOLS = ("merge", "bake", "extract", "resize", "convert")
MODEL_TOOLS = ("convert",)
MOST_ADAPTERS = 4
NOT_FOR_ADAPTERS = ("source", "target", "layout", "half", "bf16", "float")
"""What ``convert`` takes for adapters; the rest of its options is about checkpoints."""


class Tool:
    """One tool: its controls, and the button that starts it."""

    def __init__(self, studio: Any, name: str, options: Sequence[Any], place: str) -> None:
        self.studio, self.name, self.place = studio, name, place
        self.readers: list[tuple[Any, int]] = []
        """(option, number of its controls), in the order of the controls."""
        self.controls: list[Component] = []
        self.files: list[Component] = []
        title, hint = TITLES[name]
        gr.HTML(div("db-help", hint))
        first = [each for each in options if each.required or each.name == "method"]
        rest = [each for each in options if each not in first]
        for option in first:
            self._draw(option)
        if rest:
            with gr.Accordion("More", open=False, elem_classes=["db-accordion"]):
                for start in range(0, len(rest), 2):
                    with gr.Row(elem_classes=["db-row"]):
                        for option in rest[start : start + 2]:
                            self._draw(option)
        with gr.Row(elem_classes=["db-actions"]):
            self.start = button(
                title, elem_id=f"dreambooth_{place}_{name}", kind="primary", scale=0, min_width=180
            )
        self.said: Component = html(elem_id=f"dreambooth_{place}_{name}_said")
        on(self.start.click, self._start, self.controls, [self.said])

    def _draw(self, option: Any) -> None:
        if option.type == "weighted":
            controls = self._weighted(option)
        else:
            controls = [_control(option, self._id(option.name))]
            if option.type == "file":
                self.files += controls
        self.controls += controls
        self.readers.append((option, len(controls)))

    def _weighted(self, option: Any) -> list[Component]:
        """Rows of an adapter and its weight."""
        controls = []
        for number in range(MOST_ADAPTERS):
            with gr.Row(elem_classes=["db-row", "db-weighted"]):
                chosen = make(
                    "Dropdown",
                    label=f"Adapter {number + 1}",
                    choices=[],
                    value=None,
                    allow_custom_value=True,
                    elem_id=self._id(f"{option.name}_{number + 1}"),
                    scale=4,
                    interactive=True,
                )
                weight = make(
                    "Slider",
                    label="Weight",
                    minimum=-1,
                    maximum=2,
                    step=0.05,
                    value=1.0,
                    elem_id=self._id(f"{option.name}_{number + 1}_weight"),
                    scale=3,
                    interactive=True,
                )
            self.files.append(chosen)
            controls += [chosen, weight]
        return controls

    def _id(self, option: str) -> str:
        return f"dreambooth_{self.place}_{self.name}_{option.strip('-').replace('-', '_')}"

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """The values that were set, by the options' names."""
        found: dict[str, Any] = {}
        left = list(given)
        for option, count in self.readers:
            mine, left = left[:count], left[count:]
            value = _weighted_value(mine) if option.type == "weighted" else _value(option, mine[0])
            if value not in (None, "", []) and value != option.default:
                found[option.name] = value
        return found

    def _start(self, *given: Any) -> Html:
        try:
            self.studio.run_tool(self.name, self.values(given))
        except DreamBoothError as error:
            return failure(error)
        return note("info", "Started: see Tasks below.")


def _control(option: Any, elem_id: str) -> Component:
    common = {
        "label": option.label,
        "info": HELP.get(option.help) or option.help[:1].upper() + option.help[1:],
        "scale": 1,
        "value": option.default,
        "elem_id": elem_id,
        "interactive": True,
        "min_width": 220,
    }
    if option.type == "bool":
        return make("Checkbox", **{**common, "value": bool(option.default)})
    if option.type == "choice":
        return make("Dropdown", choices=list(option.choices or ()), **common)
    if option.type == "file":
        return make("Dropdown", choices=[], allow_custom_value=True, **common)
    lines = 3 if option.type in ("list", "numbers") else 1
    shown = "" if option.default is None else option.default
    shown = "\n".join(map(str, shown)) if isinstance(shown, (list, tuple)) else str(shown)
    return make("Textbox", lines=lines, **{**common, "value": shown})


def _value(option: Any, shown: Any) -> Any:
    """What a control stands for; numbers stay as typed, the engine says what is wrong."""
    if option.type == "bool":
        return bool(shown)
    words = str(shown or "").strip()
    if option.type in ("list", "numbers"):
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        return [_number(float, line) for line in lines] if option.type == "numbers" else lines
    if option.type in ("int", "float") and words:
        return _number(int if option.type == "int" else float, words)
    return words


def _number(kind: type[int] | type[float], words: str) -> Any:
    try:
        return kind(words)
    except ValueError:
        return words


def _weighted_value(shown: Sequence[Any]) -> list[dict[str, Any]]:
    pairs = zip(shown[::2], shown[1::2], strict=True)
    return [
        {"file": name.strip(), "weight": float(weight)}
        for name, weight in pairs
        if (name or "").strip()
    ]


class ToolsPage:
    """The pages of adapters and of models."""

    def __init__(self, studio: Any) -> None:
        self.studio = studio
        self.tasks: list[Component] = []
        self.adapter_files: list[Component] = []
        self.model_files: list[Component] = []

    def adapters(self) -> None:
        """The page of adapters."""
        options = self.studio.tools.all()
        with card(elem_id="dreambooth_adapters_area"):
            heading("", "Adapters", "LoRA and its relatives, in any layout.")
            with make("Tabs", elem_id="dreambooth_adapter_tools"):
                with gr.TabItem("Inspect"):
                    self._inspect()
                for name in ADAPTER_TOOLS:
                    with gr.TabItem(TITLES[name][0]):
                        mine = options.get(name, [])
                        if name == "convert":
                            mine = [each for each in mine if each.name in NOT_FOR_ADAPTERS]
                        tool = Tool(self.studio, name, mine, "adapter")
                        self.adapter_files += tool.files
            self._tasks("adapters")

    def models(self) -> None:
        """The page of checkpoints."""
        with card(elem_id="dreambooth_models_area"):
            heading("", "Models", "Single files and diffusers folders, both ways.")
            for name in MODEL_TOOLS:
                options = [
                    each for each in self.studio.tools.all().get(name, []) if each.name != "layout"
                ]
                self.model_files += Tool(self.studio, name, options, "model").files
            self._tasks("models")

    def _inspect(self) -> None:
        with gr.Row(elem_classes=["db-row", "db-with-tool"]):
            file = make(
                "Dropdown",
                label="File",
                info="An adapter or a checkpoint.",
                choices=[],
                value=None,
                allow_custom_value=True,
                elem_id="dreambooth_inspect_file",
                interactive=True,
                scale=5,
            )
            go = button("Inspect", elem_id="dreambooth_inspect", scale=0, min_width=110)
        shown = html(elem_id="dreambooth_inspected")
        self.adapter_files.append(file)
        on(go.click, self._look, [file], [shown])

    def _look(self, file: str | None) -> Html:
        name = (file or "").strip()
        if not name:
            return note("info", "Choose a file.")
        try:
            known = {
                each.name: each.path
                for each in (*self.studio.bases.all(), *self.studio.tools.adapters())
            }
            return inspected(self.studio.inspect(known.get(name, name)))
        except DreamBoothError as error:
            return failure(error)

    def _tasks(self, page: str) -> None:
        gr.HTML(tag("h4", "Tasks"))
        self.tasks.append(html(elem_id=f"dreambooth_tasks_{page}"))

    def lists(self) -> list[Any]:
        """The files that can be chosen, anew; for :meth:`files`."""
        try:
            adapters = [each.name for each in self.studio.tools.adapters()]
            models = [each.name for each in self.studio.bases.all()]
        except DreamBoothError:
            return [update() for _ in self.files()]
        both = [*adapters, *models]
        return [
            *(update(choices=both) for _ in self.adapter_files),
            *(update(choices=models) for _ in self.model_files),
        ]

    def files(self) -> list[Component]:
        """The controls that choose files."""
        return [*self.adapter_files, *self.model_files]
