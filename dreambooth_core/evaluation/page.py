"""An evaluation as one HTML page that stands alone: a table of measures, and every image."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from dreambooth_core.data.decode import encode
from dreambooth_core.evaluation.measures import Measure
from dreambooth_core.evaluation.protocol import Task

SIDE = 192
"""Pixels of an image on the page."""
WORDS = {
    "subject": ("Subject", "likeness to the real images, by what tells individuals apart; higher"),
    "clip_i": ("Subject, CLIP", "the same by CLIP; higher"),
    "style": ("Style", "likeness to the real images, whose contents are others, by CLIP; higher"),
    "clip_t": ("Prompt", "how far an image shows what its prompt says, by CLIP; higher"),
    "preservation": (
        "Class is the subject",
        "likeness of the class prompt's images to the subject; should stay as low as the base's",
    ),
    "diversity": (
        "Variety of the class",
        "how unlike each other the class prompt's images are; should stay as high as the base's",
    ),
    "held_out_loss": ("Held-out loss", "loss on images that were not trained on; lower"),
}
"""Each measure's name, and what it says."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #202124; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #dadce0; text-align: left;
  vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: #5f6368; }
img { margin: 0 .3rem .3rem 0; border-radius: .3rem; vertical-align: top; }
.best { background: #e6f4ea; }
"""


@dataclass(frozen=True)
class Judged:
    """What one model made, and how it was judged."""

    label: str
    measures: Mapping[str, Measure]
    images: Sequence[Image.Image]
    held_out_loss: float | None = None
    best: bool = False
    """Whether it is the step that the run's held-out images found best."""
    step: int | None = None
    """Of its run; None for the base."""


def page(
    title: str,
    facts: Mapping[str, str],
    real: Sequence[Image.Image],
    tasks: Sequence[Task],
    models: Sequence[Judged],
    notes: Sequence[str] = (),
) -> str:
    """The whole page; nothing in it is fetched from anywhere."""
    head = escape(title)
    body = [
        f"<h1>{head}</h1>",
        *(f"<p>{escape(note)}</p>" for note in notes),
        "<p>"
        + "<br>".join(f"{escape(name)}: {escape(text)}" for name, text in facts.items())
        + "</p>",
        _table(models),
        f"<h2>The real subject</h2><p>{''.join(_shown(image) for image in real)}</p>",
        "<h2>Images</h2>",
        _images(tasks, models),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{head}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(models: Sequence[Judged]) -> str:
    names = [name for name in WORDS if any(_cell(model, name) for model in models)]
    heads = "".join(
        f"<th>{escape(m.label)}{' <small>best</small>' if m.best else ''}</th>" for m in models
    )
    rows = []
    for name in names:
        word, means = WORDS[name]
        cells = "".join(
            f'<td class="number{" best" if model.best else ""}">{_cell(model, name)}</td>'
            for model in models
        )
        rows.append(f"<tr><td>{escape(word)}<br><small>{escape(means)}</small></td>{cells}</tr>")
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _cell(model: Judged, name: str) -> str:
    if name == "held_out_loss":
        return "" if model.held_out_loss is None else f"{model.held_out_loss:.4f}"
    found = model.measures.get(name)
    if found is None:
        return ""
    return f"{found.value:.3f}<br><small>{found.low:.3f} to {found.high:.3f}</small>"


def _images(tasks: Sequence[Task], models: Sequence[Judged]) -> str:
    heads = "".join(f"<th>{escape(model.label)}</th>" for model in models)
    rows = []
    for prompt in dict.fromkeys(task.prompt for task in tasks):
        places = [i for i, task in enumerate(tasks) if task.prompt == prompt]
        cells = "".join(
            f"<td>{''.join(_shown(model.images[i]) for i in places)}</td>" for model in models
        )
        rows.append(f"<tr><td>{escape(prompt)}</td>{cells}</tr>")
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _shown(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    data = base64.b64encode(encode(small, "JPEG", quality=85)).decode("ascii")
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="">'
