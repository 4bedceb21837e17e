"""What was found in a folder of images: what is taken, what is skipped, and why."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dreambooth_core.data.crops import Crop


@dataclass(frozen=True)
class ImageFile:
    """An image that is trained on."""

    path: Path
    name: str
    """The path below the folder, with ``/``."""
    width: int
    """Pixels, upright: after the camera's orientation is applied."""
    height: int
    content_hash: str
    """Of the file's bytes: two files with one hash are one image."""
    format: str = ""
    mode: str = "RGB"
    """Pillow's mode of the file, such as ``RGB``, ``CMYK``, ``I;16``."""
    has_alpha: bool = False
    notes: tuple[str, ...] = ()
    caption: Path | None = None
    """The ``.txt`` or ``.caption`` file beside it."""
    mask: Path | None = None
    mask_hash: str = ""
    repeats: int = 1
    """From a folder named like ``10_sks dog``; elsewhere 1."""
    crop: Crop | None = None
    """The part that is trained on; ``None``: all of it."""
    crop_file: Path | None = None

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what is trained on: the crop, else the whole image."""
        if self.crop is None:
            return self.height, self.width
        return self.crop.size(self.width, self.height)

    @cached_property
    def pixels_hash(self) -> str:
        """Of what is trained on: two images with one hash show the same."""
        if self.crop is None:
            return self.content_hash
        return f"{self.content_hash}{list(self.crop.box(self.width, self.height))}"

    def as_dict(self) -> dict[str, Any]:
        """For receipts: plain JSON values."""
        return {
            "name": printable(self.name),
            "width": self.width,
            "height": self.height,
            "format": self.format,
            "hash": self.content_hash,
            "notes": list(self.notes),
            "caption_file": printable(self.caption.name) if self.caption else None,
            "mask_file": printable(self.mask.name) if self.mask else None,
            "repeats": self.repeats,
            **({} if self.crop is None else {"crop": dataclasses.asdict(self.crop)}),
        }


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not trained on."""

    name: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """For receipts and pages: plain JSON values."""
        return {"name": printable(self.name), "reason": self.reason}


@dataclass(frozen=True)
class Inventory:
    """Everything in a folder, accounted for."""

    folder: Path
    taken: list[ImageFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Changes when an image is added, removed, renamed, edited or cropped."""
        digest = hashlib.blake2b(digest_size=8)
        for image in self.taken:
            digest.update(f"{printable(image.name)}\0{image.pixels_hash}\0".encode())
        return digest.hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """For receipts: plain JSON values."""
        return {
            "folder": printable(str(self.folder)),
            "fingerprint": self.fingerprint,
            "taken": [image.as_dict() for image in self.taken],
            "skipped": [item.as_dict() for item in self.skipped],
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The report that a person reads."""
        images = "1 image" if len(self.taken) == 1 else f"{len(self.taken)} images"
        head = f"{printable(str(self.folder))}: {images} taken"
        if self.skipped:
            head += f", {len(self.skipped)} skipped"
        noted = [
            f"  taken   {printable(p.name)}: {'; '.join(p.notes)}" for p in self.taken if p.notes
        ]
        skipped = [f"  skipped {printable(s.name)}: {s.reason}" for s in self.skipped]
        return [head, *noted, *skipped, *(f"  warning {text}" for text in self.warnings)]


def hash_bytes(content: bytes) -> str:
    """The hash that tells images apart: blake2b, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def printable(name: str) -> str:
    """A name that can be written as UTF-8: undecodable bytes become ``?``."""
    return name.encode("utf-8", "replace").decode("utf-8")
