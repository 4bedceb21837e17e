"""The captions of a subject's images: reviewed and edited in a table, or written by a model."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dreambooth_core.commands.caption import MODELS
from dreambooth_core.errors import DreamBoothError

from .common import button, failure, html
from .compat import Component, make, on, update
from .html import Html, div, note, span
from .tasks import task_list

MOST_BACK = 20
"""How many times captions can be taken back."""

Past = list[dict[str, str]]
"""Captions by the images' paths, as they were before each change; the last one last."""


class Captions:
    """The table, and what changes it.

    Nothing is written before *Save captions* but what a model says; both can be undone.
    """

    def __init__(self, studio: Any, number: int) -> None:
        self.studio = studio
        self.past: Component = gr.State([])
        here = f"dreambooth_captions_{number}"
        with gr.Accordion("Captions", open=False, elem_classes=["db-accordion"]):
            gr.HTML(
                div("db-help", "What each image shows. Empty: the instance prompt is its caption.")
            )
            self.table: Component = make(
                "Dataframe",
                headers=["Image", "Caption"],
                datatype=["str", "str"],
                col_count=(2, "fixed"),
                type="array",
                value=[],
                interactive=True,
                wrap=True,
                elem_id=here,
            )
            with gr.Row(elem_classes=["db-row"]):
                self.save = button("Save captions", elem_id=f"{here}_save")
                self.undo = button("Undo", elem_id=f"{here}_undo")
                self.refresh = button("Refresh", elem_id=f"{here}_refresh")
            with gr.Row(elem_classes=["db-row", "db-with-tool"]):
                self.before = self._text("Before each", f"{here}_before")
                self.behind = self._text("Behind each", f"{here}_behind")
                self.add = button("Add to all", elem_id=f"{here}_add", scale=0, min_width=120)
            with gr.Accordion("Captions by a model", open=False, elem_classes=["db-accordion"]):
                self._model(here)
            self.said: Component = html(elem_id=f"{here}_said")

    def _text(self, label: str, elem_id: str, **more: Any) -> Component:
        return make("Textbox", label=label, value="", elem_id=elem_id, **more)

    def _model(self, here: str) -> None:
        gr.HTML(div("db-help", ABOUT_MODELS))
        with gr.Row(elem_classes=["db-row"]):
            self.model: Component = make(
                "Dropdown",
                label="Model",
                choices=list(MODELS),
                value=MODELS[0],
                elem_id=f"{here}_model",
                interactive=True,
            )
            self.never = self._text(
                "Words to leave out", f"{here}_never", info="With commas between them."
            )
        with gr.Row(elem_classes=["db-row"]):
            self.overwrite: Component = make("Checkbox", label="Replace captions", value=False)
            self.download: Component = make("Checkbox", label="Fetch the model", value=False)
            self.write = button("Write captions", elem_id=f"{here}_write")

    def wire(self, folder: Component, trigger: Component, gallery: Component, look: Any) -> None:
        """Connects everything.

        Args:
            look: tells what gallery and table show of a folder.
        """
        self.look = look
        shown = [self.said, self.past, gallery, self.table]
        on(self.save.click, self._save, [folder, self.table, self.past], shown)
        on(self.undo.click, self._undo, [folder, self.past], shown)
        on(self.refresh.click, self._refresh, [folder, self.past], shown)
        words = [self.before, self.behind]
        on(self.add.click, added, [self.table, *words], [self.table], quiet=True)
        asked = [self.model, trigger, *words, self.never, self.overwrite, self.download]
        on(self.write.click, self._write, [folder, self.past, *asked], [self.said, self.past])

    def _captions(self, folder: str) -> dict[str, str]:
        """Those on the disk, by the images' paths."""
        found = self.studio.pictures((folder or "").strip()).taken
        return {each.path: each.caption for each in found}

    def _change(self, folder: str, past: Past, wanted: dict[str, str], words: str) -> list[Any]:
        """Writes the captions that differ, and what is told of it."""
        written = 0
        for path, before in self._captions(folder).items():
            text = wanted.get(path, before)
            if text != before:
                self.studio.set_caption(path, text)
                written += 1
        said = note("good", span("db-count", written), " ", span("", words))
        return [said, past, *self.look(folder)]

    def _save(self, folder: str, rows: Any, past: Past) -> list[Any]:
        try:
            before = self._captions(folder)
            names = {each.name: each.path for each in self.studio.pictures(folder.strip()).taken}
            wanted = {
                names[str(name)]: str(caption or "").strip()
                for name, caption, *_ in rows or []
                if str(name) in names
            }
            return self._change(folder, _kept(past, before), wanted, "captions saved")
        except DreamBoothError as error:
            return [failure(error), update(), update(), update()]

    def _undo(self, folder: str, past: Past) -> list[Any]:
        if not past:
            return [note("info", "There is nothing to undo."), past, update(), update()]
        try:
            return self._change(folder, past[:-1], past[-1], "captions as before")
        except DreamBoothError as error:
            return [failure(error), update(), update(), update()]

    def _refresh(self, folder: str, past: Past) -> list[Any]:
        tasks = [task for task in self.studio.tools.tasks() if task.tool == "caption"]
        return [task_list(tasks) if tasks else "", past, *self.look(folder)]

    def _write(self, folder: str, past: Past, *asked: Any) -> list[Any]:
        model, trigger, before, behind, never, overwrite, download = asked
        try:
            kept = _kept(past, self._captions(folder))
            self.studio.caption(
                folder.strip(),
                model=model,
                trigger=trigger or "",
                prefix=before or "",
                suffix=behind or "",
                never=[word.strip() for word in (never or "").split(",") if word.strip()],
                overwrite=bool(overwrite),
                download=bool(download),
            )
        except DreamBoothError as error:
            return [failure(error), update()]
        return [BEGUN, kept]


ABOUT_MODELS = (
    "The instance prompt comes first, then what a model sees. Captions that are there stay, so "
    "that what was stopped goes on where it ended. blip 990 MB, florence-2 about 0.5 GB, wd-vit "
    "(tags of drawings) about 380 MB."
)
BEGUN: Html = note("info", "Captions are being written: Refresh shows how far.")


def added(rows: Any, before: str, behind: str) -> list[list[str]]:
    """The rows of the table with words before and behind each caption, unless they are there; an
    empty one stands for the instance prompt, and stays."""
    first, last = (before or "").strip(" ,"), (behind or "").strip(" ,")
    found = []
    for name, caption, *_ in rows or []:
        text = str(caption or "").strip()
        if text and first and not text.startswith(first):
            text = f"{first}, {text}"
        if text and last and not text.endswith(last):
            text = f"{text}, {last}"
        found.append([str(name), text])
    return found


def _kept(past: Past, captions: dict[str, str]) -> Past:
    return [*past, captions][-MOST_BACK:]
