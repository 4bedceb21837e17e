"""What is learned: images and prompts of one or several subjects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.data.crops import crop_of
from dreambooth_core.errors import DreamBoothError

from . import values
from .captions import Captions
from .common import button, card, failure, heading, html
from .compat import Component, make, on, update
from .cropping import Cropper, attributes
from .form import draw
from .html import Html, div, join, note, picture, span, tag
from .values import Spec, Wrong

MOST = 4
"""Subjects at once. Their controls exist from the start: gradio 3 adds none later."""

MOST_SHOWN = 48
KINDS = ("object", "person", "style")
FIRST = ("images", "instance_prompt", "class_prompt")
HINTS = {
    "object": "5 to 20 images, different backgrounds.",
    "person": "10 to 30 images: faces near and far, light and clothes that change.",
    "style": "20 to 100 images that share nothing but the style.",
}


class Subject:
    """The controls of one subject."""

    def __init__(self, studio: Any, number: int, specs: dict[str, Spec]) -> None:
        self.studio, self.number, self.specs = studio, number, specs
        self.controls: dict[str, Component] = {}
        name = f"Subject {number + 1}" if number else ""
        with gr.Column(visible=number == 0, elem_classes=["db-subject"]) as self.box:
            if name:
                gr.HTML(tag("h4", name))
            with gr.Row(elem_classes=["db-row", "db-with-tool"]):
                self._draw("images", placeholder="/path/to/pictures", scale=5)
                self.upload = make(
                    "UploadButton",
                    label="Upload images",
                    file_types=["image"],
                    file_count="multiple",
                    elem_id=f"dreambooth_upload_{number}",
                    scale=1,
                    min_width=130,
                )
            self.gallery = html(elem_id=f"dreambooth_pictures_{number}")
            self.cropper = Cropper(studio, number)
            with gr.Row(elem_classes=["db-row"]):
                self._draw("instance_prompt", placeholder="a photo of sks dog")
                self._draw("class_prompt", placeholder="a photo of a dog")
            self.captions = Captions(studio, number)
            with gr.Accordion("More about this subject", open=False, elem_classes=["db-accordion"]):
                rest = [key for key in specs if key not in FIRST]
                for start in range(0, len(rest), 2):
                    with gr.Row(elem_classes=["db-row"]):
                        for key in rest[start : start + 2]:
                            self._draw(key)
        self._wire()

    def _draw(self, field: str, **changes: Any) -> None:
        key = f"concepts[{self.number}].{field}"
        self.controls[field] = draw(self.specs[field], key, **changes)

    def _wire(self) -> None:
        folder, seen = self.controls["images"], self.seen
        on(folder.submit, self.look, [folder], seen, quiet=True)
        on(folder.blur, self.look, [folder], seen, quiet=True)
        on(self.upload.upload, self._upload, [self.upload, folder], [folder, *seen])
        trigger = self.controls["instance_prompt"]
        self.captions.wire(folder, trigger, self.gallery, self.look)
        self.cropper.wire(folder, seen, self.look)

    @property
    def seen(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.gallery, self.captions.table]

    def look(self, folder: str) -> list[Any]:
        """The folder's images as a gallery, and their captions as rows."""
        if not (folder or "").strip():
            return [update(value=""), update(value=[])]
        try:
            found = self.studio.pictures(folder.strip())
        except DreamBoothError as error:
            return [update(value=_failed(error, self.number)), update(value=[])]
        rows = [[each.name, each.caption] for each in found.taken]
        return [update(value=gallery(found, self.number)), update(value=rows)]

    def _upload(self, files: Any, folder: str) -> list[Any]:
        paths = [str(getattr(each, "name", each)) for each in files or []]
        name = Path(folder).name if (folder or "").strip() else f"subject-{self.number + 1}"
        try:
            place = self.studio.upload(paths, name)
        except DreamBoothError as error:
            return [update(), update(value=failure(error)), update()]
        return [update(value=place), *self.look(place)]


class Subjects:
    """All subjects, and what kind of thing they are."""

    def __init__(self, studio: Any, form: Any, description: Spec) -> None:
        concepts = next(each for each in description["children"] if each["name"] == "concepts")
        self.specs: dict[str, Spec] = {each["name"]: each for each in concepts["item"]["children"]}
        with card(elem_id="dreambooth_subject_area"):
            heading("1", "Subject", "Images of what is to be learned, and the words for it.")
            self.kind: Component = make(
                "Radio",
                label="Kind",
                choices=list(KINDS),
                value="object",
                elem_id="dreambooth_kind",
                info="Chooses the preset: how long, how large, how fast.",
                interactive=True,
            )
            self.hint: Component = html(div("db-help", HINTS["object"]))
            self.all = [Subject(studio, number, self.specs) for number in range(MOST)]
            with gr.Row(elem_classes=["db-row"]):
                self.add = button("Add a subject", elem_id="dreambooth_subject_add", size="sm")
                self.drop = button("Remove the last", elem_id="dreambooth_subject_drop", size="sm")
            form.field("prior.enabled")
            form.section("prior")
            form.section("data")
            form.section("marks")
        self.count: Component = gr.State(1)
        on(self.add.click, lambda n: self.show(n + 1), [self.count], self.shown())
        on(self.drop.click, lambda n: self.show(n - 1), [self.count], self.shown())
        on(
            self.kind.change,
            lambda k: div("db-help", HINTS[k]),
            [self.kind],
            [self.hint],
            quiet=True,
        )

    @property
    def labels(self) -> dict[str, str]:
        """The fields' labels by key."""
        return {
            f"concepts[{number}].{name}": str(spec["label"])
            for number in range(MOST)
            for name, spec in self.specs.items()
        }

    def show(self, count: int) -> list[Any]:
        """Updates for :meth:`shown`: so many subjects."""
        count = min(max(int(count), 1), MOST)
        return [count, *(update(visible=number < count) for number in range(MOST))]

    def shown(self) -> list[Component]:
        """The number of subjects, and their boxes."""
        return [self.count, *(each.box for each in self.all)]

    def controls(self) -> dict[str, Component]:
        """All controls by key."""
        return {
            f"concepts[{number}].{name}": control
            for number, each in enumerate(self.all)
            for name, control in each.controls.items()
        }

    def look_after(self, event: Any) -> None:
        """Looks at the folders that an event may have filled in."""
        for each in self.all:
            on(event.then, each.look, [each.controls["images"]], each.seen, quiet=True)

    def inputs(self) -> list[Component]:
        """All controls; :meth:`read` takes their values, the number of subjects first."""
        return [self.count, *self.controls().values()]

    def read(self, given: Sequence[Any]) -> tuple[dict[str, Any], list[Wrong]]:
        """The values by key, and what is wrong."""
        found: dict[str, Any] = {}
        wrong: list[Wrong] = []
        count, rest = int(given[0]), list(given[1:])
        width = len(self.specs)
        for number in range(count):
            shown = dict(zip(self.all[number].controls, rest[number * width :], strict=False))
            specs = {f"concepts[{number}].{name}": self.specs[name] for name in shown}
            here = {f"concepts[{number}].{name}": value for name, value in shown.items()}
            values_here, wrong_here = values.read(specs, here)
            found.update(values.changed(specs, values_here, {}))
            wrong += wrong_here
            if not values_here.get(f"concepts[{number}].images"):
                label = self.specs["images"]["label"]
                key = f"concepts[{number}].images"
                wrong.append(Wrong(key, label, "is empty: choose a folder or upload images"))
        return found, wrong

    def fill(self, flat: dict[str, Any]) -> list[Any]:
        """Updates for :meth:`inputs` that show a configuration's subjects."""
        numbers = [key.split("]")[0] for key in flat if key.startswith("concepts[")]
        count = min(max(len(set(numbers)), 1), MOST)
        updates: list[Any] = [count]
        for number, each in enumerate(self.all):
            for name in each.controls:
                spec = self.specs[name]
                value = flat.get(f"concepts[{number}].{name}", spec.get("default"))
                updates.append(update(value=values.to_control(spec, value)))
        return updates


def gallery(found: Any, number: int) -> Html:
    """What is taken, and what is not and why; a click on an image is for its crop."""
    shown = found.taken[:MOST_SHOWN]
    figures = [
        picture(
            each.thumbnail or each.path,
            side=128,
            caption=_size(each),
            title=f"{each.name}\n{each.caption}".strip(),
            crop=each.crop,
            **attributes(number, each),
        )
        for each in shown
    ]
    notes = [join([tag("b", one.name), " ", text]) for one in found.taken for text in one.notes]
    counts = div(
        "db-counts",
        span("db-count db-good", len(found.taken)),
        span("", "taken"),
        span("db-count", len(found.skipped)),
        span("", "skipped"),
    )
    more = len(found.taken) - len(shown)
    return join(
        [
            counts,
            div("db-pictures", *figures),
            div("db-muted", f"+ {more}") if more else "",
            _list("Skipped", [(one["name"], one["reason"]) for one in found.skipped]),
            *(note("info", each) for each in notes[:6]),
            *(note("warning", warning) for warning in found.warnings),
        ]
    )


def _size(picture: Any) -> Html:
    """Width and height in pixels of what is trained on."""
    width, height = picture.width, picture.height
    if not picture.crop:
        return span("", f"{width}×{height}")
    left, top, right, bottom = crop_of(picture.crop).box(width, height)
    return join([span("", f"{right - left}×{bottom - top}"), " ", span("", "cropped")])


def _list(title: str, pairs: list[tuple[str, str]]) -> Html | str:
    if not pairs:
        return ""
    items = [tag("li", tag("b", name), " ", span("", reason)) for name, reason in pairs]
    return tag("details", tag("summary", title), tag("ul", *items), cls="db-skipped")


def _failed(error: DreamBoothError, number: int) -> Html:
    return div("db-note db-note-wrong", error.line, data_field=f"concepts[{number}].images")
