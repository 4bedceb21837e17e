"""Mark Images: what a training has drawn, called good or bad, and settings to go on from there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dreambooth_core.data.marks import BAD, GOOD, NAME, Mark
from dreambooth_core.errors import UserError
from dreambooth_core.options.marking import generated, mark_run, onward

from . import host
from .description import PREFIX, TOLD, Input, Node, Output, Result
from .history import RUN, open_run
from .settings import OUTPUT, PREVIOUS, Settings


def mark(
    run: str, good: str, bad: str, settings: Settings | None = None, node_id: str | None = None
) -> Result:
    """Runs Mark Images."""
    folder = open_run(run)
    images = generated(folder)
    if not images:
        raise UserError(
            "this run has drawn no images",
            where=run,
            do="Give the training node prompts for sample images.",
        )
    chosen = dict.fromkeys(_named(good, images, "Good"), GOOD)
    for name in _named(bad, images, "Bad"):
        if name in chosen:
            raise UserError(f"{name} is good and bad", where=run, do="Say one thing of each image.")
        chosen[name] = BAD
    mark_run(folder, {one.image: chosen.get(one.image, "") for one in images})
    values = onward(folder) if chosen else {}
    lines = [
        f"{number}: {chosen.get(one.image, '-')}  {one.prompt}"
        for number, one in enumerate(images, 1)
    ]
    pictures = host.load_images([folder.samples / one.image for one in images])
    return Result((Settings(values=values).over(settings), pictures), lines)


def _named(text: str, images: Sequence[Mark], where: str) -> list[str]:
    """The images that a list of numbers names.

    Raises:
        UserError: a number that none of them has.
    """
    found = []
    for part in filter(None, re.split(r"[\s,;]+", text)):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdecimal() and len(end) < 9 for end in ends):
            raise UserError(f"{part[:60]!r} is no number", where=where, do="Give 1, 3 or 5-8.")
        low, high = map(int, ends)
        if not 1 <= low <= high <= len(images):
            raise UserError(
                f"there is no image {part}", where=where, do=f"They are 1 to {len(images)}."
            )
        found += [one.image for one in images[low - 1 : high]]
    return found


def look_at_marks(run: str = "", **_: object) -> str:
    """The fingerprint of a run's images and marks."""
    try:
        folder = open_run(run)
        marks = folder.samples / NAME
        written = marks.stat().st_mtime_ns if marks.exists() else 0
        return f"{len(generated(folder))}:{written}"
    except UserError:
        return ""


MARK_IMAGES = Node(
    f"{PREFIX}MarkImages",
    "Mark Images (DreamBooth)",
    "Calls sample images of a training good or bad; its settings let a training go on from there.",
    (
        RUN,
        Input("good", "STRING", "Good", "Numbers of good images, such as 1, 3 or 5-8.", ""),
        Input("bad", "STRING", "Bad", "Numbers of bad ones; best of the same prompts.", ""),
        PREVIOUS,
    ),
    (
        OUTPUT,
        Output("IMAGE", "IMAGES", "All sample images of the training, by their numbers."),
        TOLD,
    ),
    mark,
    group="Runs",
    is_output=True,
    fingerprint=look_at_marks,
)

NODES = (MARK_IMAGES,)
