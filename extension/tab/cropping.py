"""A crop, drawn on the image or suggested."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError, UserError

from .common import button, failure, hidden_text, html
from .compat import Component, on, update
from .html import Html, Sides, div, note, span, tag, thumbnail

SIDE = 768
"""The longer side of the image that is drawn on, in pixels."""


class Cropper:
    """What a click on an image of a subject opens.

    The page's script writes which image was clicked on, and where its crop is drawn.
    """

    def __init__(self, studio: Any, number: int) -> None:
        self.studio, self.number = studio, number
        self.chosen: Component = hidden_text(f"dreambooth_crop_of_{number}")
        self.sides: Component = hidden_text(f"dreambooth_crop_sides_{number}")
        with gr.Column(visible=False, elem_id=f"dreambooth_crop_{number}") as self.box:
            self.image: Component = html()
            with gr.Row(elem_classes=["db-compact"]):
                self.save = button("Save crop", elem_id=f"dreambooth_crop_save_{number}", size="sm")
                self.suggest = button(
                    "Suggest", elem_id=f"dreambooth_crop_suggest_{number}", size="sm"
                )
                self.whole = button(
                    "Whole image", elem_id=f"dreambooth_crop_whole_{number}", size="sm"
                )
                self.close = button("Close", elem_id=f"dreambooth_crop_close_{number}", size="sm")
        self.said: Component = html()

    def wire(self, folder: Component, seen: list[Component], look: Any) -> None:
        """Connects everything; ``look`` tells what ``seen`` shows of a folder."""
        drawn = [self.box, self.image, self.said]
        on(self.chosen.change, self._open, [self.chosen, self.sides], drawn, quiet=True)
        on(self.suggest.click, self._suggest, [self.chosen], [self.image, self.sides, self.said])
        on(self.close.click, lambda: "", [], [self.chosen], quiet=True)

        def saved(chosen: str, sides: str, folder: str) -> list[Any]:
            return self._set(chosen, _read(sides), folder, look)

        def whole(chosen: str, folder: str) -> list[Any]:
            return self._set(chosen, None, folder, look)

        after = [self.chosen, self.said, *seen]
        on(self.save.click, saved, [self.chosen, self.sides, folder], after)
        on(self.whole.click, whole, [self.chosen, folder], after)

    def _open(self, chosen: str, sides: str) -> list[Any]:
        if not chosen:
            return [update(visible=False), "", update()]
        return [update(visible=True), self._drawing(chosen, _read(sides)), ""]

    def _suggest(self, chosen: str) -> list[Any]:
        try:
            sides = self.studio.suggest_crop(chosen).sides
        except DreamBoothError as error:
            return [update(), update(), failure(error)]
        if sides is None:
            return [update(), update(), note("info", "Nothing stands out from its edges.")]
        return [self._drawing(chosen, sides), _written(sides), ""]

    def _set(self, chosen: str, sides: Sides | None, folder: str, look: Any) -> list[Any]:
        try:
            self.studio.set_crop(chosen, sides)
        except DreamBoothError as error:
            return [update(), failure(error), *(update() for _ in look(""))]
        said = "Its crop is saved." if sides else "All of it is trained on."
        return ["", note("good", span("", said)), *look(folder)]

    def _drawing(self, chosen: str, sides: Sides | None) -> Html:
        source = thumbnail(chosen, SIDE)
        if not source:
            return note("wrong", UserError("the image cannot be read", where=chosen).line)
        frame = div("db-crop-frame", style=_place(sides)) if sides else div("db-crop-frame")
        return div(
            "db-crop",
            div("db-help", "Draw with the mouse what is to be learned; the file stays as it is."),
            div(
                "db-cropper",
                tag("img", src=source, alt="", draggable="false"),
                frame,
                data_cropper=self.number,
            ),
        )


def _place(sides: Sides) -> str:
    left, top, right, bottom = (100 * side for side in sides)
    return f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"


def _written(sides: Sides) -> str:
    return ",".join(f"{side:.4f}" for side in sides)


def _read(text: str) -> list[float] | None:
    """The sides that the page's script wrote; ``None`` for none."""
    try:
        found = [float(piece) for piece in (text or "").split(",")]
    except ValueError:
        return None
    return found if len(found) == 4 else None


def attributes(number: int, picture: Any) -> dict[str, Any]:
    """What an image's figure tells the page's script."""
    return {
        "data_crop": number,
        "data_picture": picture.path,
        "data_sides": _written(picture.crop) if picture.crop else "",
    }
