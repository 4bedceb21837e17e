"""Folders of images: what is in them, uploads, captions, crops."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from dreambooth_core.data.captions import read_caption
from dreambooth_core.data.crops import crop_of, file_for, read_crop, write_crop
from dreambooth_core.data.inventory import ImageFile as Found
from dreambooth_core.data.inventory import Inventory
from dreambooth_core.data.stocktaking import CAPTION_SUFFIXES, LARGEST_FILE, take_stock
from dreambooth_core.disk import copy_file, write_bytes, write_text
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.jobs import sanitise

from ..host.base import Host
from .paths import free_name
from .types import Picture, Pictures

log = logging.getLogger("dreambooth")

EDGE = 256
"""The longer side of a thumbnail, in pixels."""


class Subjects:
    """The images that the page shows."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def pictures(self, folder: Path, may_read: Callable[[Path], bool]) -> Pictures:
        """Everything in a folder, accounted for.

        Args:
            folder: it has been looked at whether it may be read.
            may_read: whether a file in it may be, which may be a link to elsewhere.

        Raises:
            UserError: as ``take_stock`` does.
        """
        stock: Inventory = take_stock(folder, crops=False)
        thumbnails = self.host.folders().thumbnails
        allowed = [found for found in stock.taken if may_read(found.path)]
        return Pictures(
            folder=str(folder),
            taken=[self._picture(found, thumbnails, may_read) for found in allowed],
            skipped=[one.as_dict() for one in stock.skipped],
            warnings=list(stock.warnings),
        )

    def upload(self, files: Sequence[Path], name: str) -> str:
        """Copies files into a new folder, under their own names.

        Raises:
            UserError: there are none, or they cannot be copied.
        """
        if not files:
            raise UserError("no files were uploaded")
        clean = sanitise(name or "subject")
        uploads = self.host.folders().uploads
        try:
            uploads.mkdir(parents=True, exist_ok=True)
            folder = free_name(uploads, clean, "")
            folder.mkdir()
            for file in files:
                stem, ending = os.path.splitext(sanitise(file.name))
                copy_file(file, free_name(folder, stem, ending))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"the upload failed: {reason}", where=error.filename) from error
        return str(folder)

    def set_caption(self, picture: Path, text: str) -> None:
        """Writes ``<picture>.txt``, or the caption file that is there already.

        Args:
            picture: an image that is there, as ``Paths.image`` found it.

        Raises:
            UserError: its folder is not writable.
        """
        there = [picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
        file = next((path for path in there if path.is_file()), there[0])
        try:
            if text.strip():
                write_text(file, text.strip() + "\n", follow=False)
            else:
                file.unlink(missing_ok=True)
        except (OSError, SaveFailed) as error:
            raise UserError(f"the caption could not be written: {error}", where=file) from error

    def set_crop(self, picture: Path, sides: Sequence[float] | None) -> None:
        """Writes the crop's file beside an image, or deletes it.

        Args:
            picture: an image that is there, as ``Paths.image`` found it.
            sides: left, top, right and bottom, as shares; ``None`` for the whole image.

        Raises:
            UserError: these are no part of an image, or its folder is not writable.
        """
        crop = None if sides is None else crop_of(sides)
        there = [file_for(picture), file_for(picture.with_suffix(""))]
        try:
            if crop is not None:
                write_crop(next((file for file in there if file.is_file()), there[0]), crop)
                return
            for file in there:
                file.unlink(missing_ok=True)
        except (OSError, SaveFailed) as error:
            raise UserError(f"the crop could not be written: {error}", where=picture) from error

    def suggest_crop(self, picture: Path) -> list[float] | None:
        """The part of an image that shows the subject, as :meth:`set_crop` takes it; ``None``
        where nothing stands out.

        Raises:
            UserError: it is no image that training takes.
        """
        from dreambooth_core.data.decode import Undecodable, decode
        from dreambooth_core.data.saliency import Wish, suggest

        try:
            image = decode(read_bytes(picture, LARGEST_FILE), picture.suffix)
        except Undecodable as error:
            raise UserError(f"the image cannot be used: {error}", where=picture) from error
        crop = suggest(image, Wish())
        return None if crop is None else list(astuple(crop))

    def _picture(self, found: Found, thumbnails: Path, may_read: Callable[[Path], bool]) -> Picture:
        readable = found.caption is not None and may_read(found.caption)
        crop, notes = None, list(found.notes)
        if found.crop_file is not None and may_read(found.crop_file):
            try:
                crop = list(astuple(read_crop(found.crop_file)))
            except UserError as error:
                notes.append(error.what)
        return Picture(
            name=found.name,
            path=str(found.path),
            thumbnail=_thumbnail(found, thumbnails),
            width=found.width,
            height=found.height,
            caption=read_caption(found.caption) if found.caption and readable else "",
            notes=notes,
            repeats=found.repeats,
            crop=crop,
        )


def _thumbnail(found: Found, folder: Path) -> str:
    """A small copy, named by the image's content; empty where it cannot be made."""
    path = folder / f"{found.content_hash}.jpg"
    if path.is_file():
        return str(path)
    from PIL import Image, ImageOps

    from dreambooth_core.data.decode import encode

    try:
        with Image.open(found.path) as image:
            upright = ImageOps.exif_transpose(image) or image
            if upright.mode.startswith("I") or upright.mode == "F":
                upright = upright.convert("I").point(lambda v: v / 256).convert("L")
            upright.thumbnail((EDGE, EDGE))
            write_bytes(path, encode(upright.convert("RGB"), "JPEG", quality=85))
    except (SaveFailed, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("no thumbnail of %s: %s", found.path, error)
        return ""
    return str(path)
