"""Caption Images and Mask Images: models that look at a concept's images before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreambooth_core.commands.caption import MODELS as CAPTION_MODELS
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.errors import UserError

from . import engine, host
from .concepts import STAR, Concept, fingerprint_of, shortened
from .description import CONCEPT, PREFIX, TOLD, Input, Node, Output, Result


@dataclass(frozen=True)
class Look:
    """A command of the engine that writes something beside each image."""

    command: str
    written: str
    """What it writes, as its report calls the list of them."""
    told: Callable[[Mapping[str, Any]], str]
    """A line about one image, out of the report."""
    changes: dict[str, Any]
    """What becomes different of the concept."""
    lists: Mapping[str, str] = field(default_factory=dict)
    """Widgets with one value on each line, and the command's options that they fill."""
    prompted: str = ""
    """The option that is the concept's instance prompt."""

    def run(self, concept: Sequence[Concept], node_id: str | None = None, **given: Any) -> Result:
        """Looks at the images of every concept."""
        asked = {
            self.lists.get(name, name): _lines(value) if name in self.lists else value
            for name, value in given.items()
        }
        lines: list[str] = []
        found = []
        for one in concept:
            folder = Path(one.options["images"])
            if folder == STAR:
                raise UserError(
                    "the example's images belong to the engine, and nothing is written beside them",
                    do="Copy them into a folder of ComfyUI's input folder.",
                )
            prompt = {self.prompted: one.options["instance_prompt"]} if self.prompted else {}
            options = {"folder": folder, **prompt, **asked}
            report = engine.task(self.command, options, host.Progress(node_id))
            lines += [f"{each['image']}: {self.told(each)}" for each in report[self.written]]
            if report["kept"]:
                lines.append(f"{report['kept']} {self.written} that were there stay")
            now = fingerprint_of(take_stock(folder))
            found.append(replace(one, fingerprint=now, **self.changes))
        return Result((tuple(found),), shortened(lines))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _share(mask: Mapping[str, Any]) -> str:
    share = mask["share"]
    return "nothing found, no mask" if share is None else f"{share:.0%} of it counts"


CAPTION = Look(
    "caption",
    "captions",
    lambda each: str(each["caption"]),
    {"captions": "auto"},
    {"never": "never"},
    prompted="trigger",
)
MASK = Look("mask", "masks", _share, {"masks": "files"}, {"words": "word"})


def _node(look: Look, label: str, about: str, inputs: tuple[Input, ...]) -> Node:
    return Node(
        f"{PREFIX}{label.replace(' ', '')}",
        f"{label} (DreamBooth)",
        about,
        (
            Input("concept", CONCEPT, "Concept", "The images, from Images or Concepts."),
            *inputs,
            Input("overwrite", "BOOLEAN", "Replace", "Replace what is there already.", False),
            Input(
                "download",
                "BOOLEAN",
                "Download",
                "Let the model be fetched from the hub if it is not on this machine.",
                False,
            ),
        ),
        (
            Output(CONCEPT, "CONCEPT", "The same images, with what was written beside them."),
            TOLD,
        ),
        look.run,
        is_output=True,
    )


CAPTION_IMAGES = _node(
    CAPTION,
    "Caption Images",
    "Writes a caption beside each image, by a model that looks at it: first the instance prompt, "
    "then what else is seen. Captions that are there stay.",
    (
        Input(
            "model",
            "COMBO",
            "Model",
            "blip: short captions, 990 MB. florence-2: long ones, about 0.5 GB. wd-vit: tags of "
            "drawings, about 380 MB.",
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
    ),
)

MASK_IMAGES = _node(
    MASK,
    "Mask Images",
    "Writes a mask of what words mean beside each image, by CLIPSeg, so that the background is not "
    "learned. Masks that are there stay.",
    (
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
    ),
)

NODES = (CAPTION_IMAGES, MASK_IMAGES)
