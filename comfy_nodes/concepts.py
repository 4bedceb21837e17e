"""Images and Concepts: what is to be learned, from which images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.config.describe import describe
from dreambooth_core.data.captions import read_caption
from dreambooth_core.data.concept_options import ConceptOptions
from dreambooth_core.data.inventory import Inventory
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.errors import UserError

from . import host
from .description import CONCEPT, PREFIX, TOLD, Input, Node, Output, Result
from .description import IMAGES as LINKED
from .linked import MASK_INPUT, Linked, keep, linked

if TYPE_CHECKING:
    from torch import Tensor

NO_FOLDER = "(none)"
EXAMPLE = "(example: a star)"
STAR = Path(__file__).resolve().parent.parent / "dreambooth_core" / "assets" / "demo" / "star"
"""Five images that come with the engine."""
MOST_SHOWN = 12


@dataclass(frozen=True)
class Concept:
    """A subject as the engine's configuration has it, and how its captions are found."""

    options: dict[str, Any]
    captions: str
    fingerprint: str
    """Changes with any image, caption or mask of it."""
    masks: str = ""
    """Where its masks are, where the graph brought some."""


def _said(schema: type, name: str) -> dict[str, Any]:
    """A field of the engine's configuration, as it describes itself."""
    return next(each for each in describe(schema)["children"] if each["name"] == name)


def _text(schema: type, name: str, default: str = "", **more: Any) -> Input:
    said = _said(schema, name)
    return Input(name, "STRING", said["label"], said["help"], default, **more)


def read_images(
    folder: str,
    path: str,
    instance_prompt: str,
    class_prompt: str,
    repeats: int,
    captions: str,
    images: Tensor | None = None,
    mask: Tensor | None = None,
    added: tuple[Linked, ...] | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Images. Raises ``UserError`` where there is nothing to learn from."""
    if not instance_prompt.strip():
        raise UserError(
            "the instance prompt is empty", do='Say what is shown: "a photo of sks dog".'
        )
    if mask is not None and images is None:
        raise UserError("there is a mask and no image", do="Link Images too, or use Add Image.")
    given = (*(linked(images, mask) if images is not None else ()), *(added or ()))
    place = _place(folder, path, given)
    found = take_stock(place)
    if not found.taken:
        raise UserError(
            "no image can be used", where=place, do="; ".join(found.lines()[1:4]) or None
        )
    options = {
        "images": str(place),
        "instance_prompt": instance_prompt.strip(),
        "class_prompt": class_prompt.strip(),
        "repeats": repeats,
    }
    masks = "files" if any(each.mask for each in given) else ""
    concept = Concept(options, captions, fingerprint_of(found), masks)
    lines = found.lines()
    if count := sum(each.mask is not None for each in found.taken):
        use = "" if masks else f"; they count where “{_MASKS['label']}” (Settings: Data) says so"
        lines.insert(1, f"  {count} of them with a mask{use}")
    return Result(((concept,),), shortened(lines))


def _place(folder: str, path: str, given: tuple[Linked, ...] = ()) -> Path:
    named = [bool(path.strip()), folder != NO_FOLDER, bool(given)]
    if sum(named) != 1:
        raise UserError(
            "choose exactly one source of images" if any(named) else "no images are named",
            do="Link images, choose a folder of the input folder, or write a path.",
        )
    if given:
        return keep(given)
    if path.strip():
        return host.readable_folder(path)
    return STAR if folder == EXAMPLE else host.input_folder() / folder


def fingerprint_of(found: Inventory) -> str:
    """Of all that is trained on: images, captions, masks."""
    digest = hashlib.sha256(found.fingerprint.encode())
    for picture in found.taken:
        caption = read_caption(picture.caption).encode() if picture.caption else b""
        mask = f"{picture.name}\0{picture.mask_hash}" if picture.mask_hash else ""
        digest.update(caption + mask.encode())
    return digest.hexdigest()


def shortened(lines: list[str]) -> list[str]:
    """As many lines as a node has room for."""
    hidden = len(lines) - MOST_SHOWN
    return lines if hidden <= 0 else [*lines[:MOST_SHOWN], f"… and {hidden} more lines"]


def look(folder: str = NO_FOLDER, path: str = "", **_: Any) -> str:
    """The fingerprint of what a folder holds now, for the host's cache."""
    if folder == NO_FOLDER and not path.strip():
        return ""
    try:
        return fingerprint_of(take_stock(_place(folder, path)))
    except UserError as error:
        return error.line


def join(node_id: str | None = None, **concepts: Any) -> Result:
    """Runs Concepts."""
    given = [c for name in sorted(concepts) for c in concepts[name] or ()]
    modes = {concept.captions for concept in given}
    if len(modes) > 1:
        raise UserError(
            f"the concepts take captions in different ways: {', '.join(sorted(modes))}",
            do="Set the same on all Images nodes.",
        )
    prompts = [concept.options["instance_prompt"] for concept in given]
    return Result((tuple(given),), [f"{len(given)} concepts", *prompts])


def _folders() -> list[str]:
    return [NO_FOLDER, EXAMPLE, *host.input_subfolders()]


_CAPTIONS = _said(DataOptions, "captions")
_MASKS = _said(DataOptions, "masks")
_REPEATS = _said(ConceptOptions, "repeats")
_OUTPUT = Output(
    CONCEPT,
    "CONCEPT",
    "The images and prompts of one subject or style, or of several.",
)

IMAGES = Node(
    f"{PREFIX}Images",
    "Images (DreamBooth)",
    "Names the images of a subject or style and the prompts that go with them. Shows what was "
    "taken and what was skipped, and why.",
    (
        Input(
            "folder",
            "COMBO",
            "Folder",
            "A folder in the host's input folder, or the example's five images. Choose (none) to "
            "write a path or link images.",
            NO_FOLDER,
            choices=_folders,
        ),
        Input(
            "path",
            "STRING",
            "Path",
            "Any other folder that you may read. Leave it empty if you chose a folder above.",
            "",
        ),
        _text(ConceptOptions, "instance_prompt", "a photo of sks dog"),
        _text(ConceptOptions, "class_prompt", "a photo of a dog"),
        Input("repeats", "INT", _REPEATS["label"], _REPEATS["help"], 1, minimum=1, maximum=1000),
        Input(
            "captions",
            "COMBO",
            _CAPTIONS["label"],
            _CAPTIONS["help"],
            _CAPTIONS["default"],
            choices=_CAPTIONS["choices"],
        ),
        Input(
            "images",
            "IMAGE",
            "Images",
            "Images from the graph instead of a folder. They are kept in output/dreambooth.",
            optional=True,
        ),
        MASK_INPUT,
        Input(
            "added",
            LINKED,
            "Added images",
            "Images of any sizes from the graph, from Add Image.",
            optional=True,
        ),
    ),
    (_OUTPUT, TOLD),
    read_images,
    is_output=True,
    fingerprint=look,
)

CONCEPTS = Node(
    f"{PREFIX}Concepts",
    "Concepts (DreamBooth)",
    "Several subjects or styles for one training.",
    tuple(
        Input(
            f"concept_{n}",
            CONCEPT,
            f"Concept {n}",
            "What one Images node gives, or another Concepts node.",
            optional=n > 1,
        )
        for n in range(1, 7)
    ),
    (_OUTPUT,),
    join,
)

NODES = (IMAGES, CONCEPTS)
