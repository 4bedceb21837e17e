"""Add Image, and what is kept of images, masks and captions that come along links."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import UserError

from . import host
from .description import IMAGES, PREFIX, Input, Node, Output, Result

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Linked:
    """An image out of the graph."""

    image: Image.Image
    mask: Image.Image | None = None
    """White counts; of the image's size."""
    caption: str = ""

    def files(self) -> dict[str, bytes]:
        """What is written of it, by the ending of the file's name."""
        from dreambooth_core.data.decode import encode

        found = {".png": encode(self.image)}
        if self.mask is not None:
            found[".mask.png"] = encode(self.mask)
        if self.caption:
            found[".txt"] = self.caption.encode()
        return found


def linked(images: Tensor, mask: Tensor | None = None, caption: str = "") -> tuple[Linked, ...]:
    """The images of a batch with their masks; an empty mask is none, as Load Image gives it.

    Raises:
        UserError: there are neither one mask nor as many as images.
    """
    pictures = host.to_pictures(images)
    masks: list[Image.Image | None] = [None] * len(pictures)
    if mask is not None:
        masks = [each if each.getbbox() else None for each in host.to_masks(mask)]
        masks = masks * len(pictures) if len(masks) == 1 else masks
        if len(masks) != len(pictures):
            raise UserError(
                f"there are {len(masks)} masks for {len(pictures)} images",
                do="Link one mask for all, or one for each.",
            )
    return tuple(
        Linked(one, None if its is None else its.resize(one.size), caption)
        for one, its in zip(pictures, masks, strict=True)
    )


def add(
    image: Tensor,
    caption: str,
    mask: Tensor | None = None,
    images: tuple[Linked, ...] | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Add Image."""
    return Result(((*(images or ()), *linked(image, mask, caption.strip())),))


def keep(found: tuple[Linked, ...]) -> Path:
    """Writes images into a folder named after their content, once."""
    digest = hashlib.sha256()
    for each in found:
        digest.update(f"{each.image.size}".encode() + each.image.tobytes())
        if each.mask is not None:
            digest.update(b"mask" + each.mask.tobytes())
        digest.update(each.caption.encode())
    folder = host.runs_folder() / "images" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(found):
        for ending, content in each.files().items():
            path = folder / f"{number:04d}{ending}"
            if not path.exists():
                write_bytes(path, content)
    return folder


MASK_INPUT = Input(
    "mask",
    "MASK",
    "Mask",
    "What counts of the linked images: one mask for all, or one for each; white counts. Load Image "
    "gives what is painted in its mask editor; of an image with transparency it gives what is "
    "transparent, so that Invert Mask belongs between.",
    optional=True,
)

ADD_IMAGE = Node(
    f"{PREFIX}AddImage",
    "Add Image (DreamBooth)",
    "Gathers images of any sizes, each with its mask and caption: from several Load Image nodes, "
    "one after the other.",
    (
        Input("image", "IMAGE", "Image", "One image, or several of one size."),
        Input(
            "caption",
            "STRING",
            "Caption",
            "What is on it. Empty: the instance prompt.",
            "",
            multiline=True,
        ),
        MASK_INPUT,
        Input("images", IMAGES, "Images", "From another Add Image.", optional=True),
    ),
    (Output(IMAGES, "IMAGES", "For Images, or for another Add Image."),),
    add,
)

NODES = (ADD_IMAGE,)
