"""Caption Images and Mask Images: models that look at a concept's images before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_core.data.inventory import take_stock
from dreambooth_core.errors import UserError

from . import engine, host
from .concepts import STAR, Concept, fingerprint_of, shortened
from .description import CONCEPT, PREFIX, TOLD, Input, Node, Output, Result

CAPTION_MODELS = ("blip", "blip-large", "florence-2", "florence-2-large")


def caption(
    concept: Sequence[Concept],
    model: str,
    never: str,
    overwrite: bool,
    download: bool,
    node_id: str | None = None,
) -> Result:
    """Runs Caption Images."""
    lines: list[str] = []

    def ask(folder: Path, one: Concept) -> None:
        asked = {
            "model": model,
            "trigger": one.options["instance_prompt"],
            "never": _lines(never),
            "overwrite": overwrite,
            "download": download,
        }
        report = _task("caption", folder, asked, node_id)
        lines.extend(f"{each['image']}: {each['caption']}" for each in report["captions"])
        if report["kept"]:
            lines.append(f"{report['kept']} captions that were there stay")

    return Result((_looked_at(concept, ask, captions="auto"),), shortened(lines))


def mask(
    concept: Sequence[Concept],
    words: str,
    threshold: float,
    invert: bool,
    overwrite: bool,
    download: bool,
    node_id: str | None = None,
) -> Result:
    """Runs Mask Images."""
    lines: list[str] = []

    def ask(folder: Path, one: Concept) -> None:
        asked = {
            "word": _lines(words),
            "threshold": threshold,
            "invert": invert,
            "overwrite": overwrite,
            "download": download,
        }
        report = _task("mask", folder, asked, node_id)
        for each in report["masks"]:
            share = each["share"]
            said = "nothing found, no mask" if share is None else f"{share:.0%} of it counts"
            lines.append(f"{each['image']}: {said}")
        if report["kept"]:
            lines.append(f"{report['kept']} masks that were there stay")

    return Result((_looked_at(concept, ask),), shortened(lines))


def _looked_at(concepts: Sequence[Concept], ask: Any, **changes: Any) -> tuple[Concept, ...]:
    """The concepts with what was written beside their images."""
    found = []
    for one in concepts:
        folder = Path(one.options["images"])
        if folder == STAR:
            raise UserError(
                "the example's images belong to the engine, and nothing is written beside them",
                do="Copy them into a folder of ComfyUI's input folder.",
            )
        ask(folder, one)
        found.append(replace(one, fingerprint=fingerprint_of(take_stock(folder)), **changes))
    return tuple(found)


def _task(name: str, folder: Path, asked: Mapping[str, Any], node_id: str | None) -> dict[str, Any]:
    return engine.task(name, {"folder": folder, **asked}, host.Progress(node_id))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


_CONCEPT = Input("concept", CONCEPT, "Concept", "The images, from Images or Concepts.")
_OVERWRITE = Input("overwrite", "BOOLEAN", "Replace", "Replace what is there already.", False)
_DOWNLOAD = Input(
    "download",
    "BOOLEAN",
    "Download",
    "Let the model be fetched from the hub if it is not on this machine.",
    False,
)
_OUTPUT = Output(CONCEPT, "CONCEPT", "The same images, with what was written beside them.")

CAPTION_IMAGES = Node(
    f"{PREFIX}CaptionImages",
    "Caption Images (DreamBooth)",
    "Writes a caption beside each image, by a model that looks at it: first the instance prompt, "
    "then what else is seen. Captions that are there stay.",
    (
        _CONCEPT,
        Input(
            "model",
            "COMBO",
            "Model",
            "blip: short captions, 990 MB. florence-2: long ones, about 0.5 GB.",
            CAPTION_MODELS[0],
            choices=CAPTION_MODELS,
        ),
        Input(
            "never",
            "STRING",
            "Words to leave out",
            "What should be learned as part of the subject, one on each line.",
            "",
            multiline=True,
        ),
        _OVERWRITE,
        _DOWNLOAD,
    ),
    (_OUTPUT, TOLD),
    caption,
    is_output=True,
)

MASK_IMAGES = Node(
    f"{PREFIX}MaskImages",
    "Mask Images (DreamBooth)",
    "Writes a mask of what words mean beside each image, by CLIPSeg, so that the background is not "
    "learned. Masks that are there stay.",
    (
        _CONCEPT,
        Input(
            "words",
            "STRING",
            "Words",
            "What counts, such as a dog; one on each line.",
            "",
            multiline=True,
        ),
        Input(
            "threshold",
            "FLOAT",
            "Threshold",
            "How likely a place must be to count.",
            0.4,
            0.0,
            1.0,
            0.01,
        ),
        Input("invert", "BOOLEAN", "Invert", "What was found is left out, the rest counts.", False),
        _OVERWRITE,
        _DOWNLOAD,
    ),
    (_OUTPUT, TOLD),
    mask,
    is_output=True,
)

NODES = (CAPTION_IMAGES, MASK_IMAGES)
