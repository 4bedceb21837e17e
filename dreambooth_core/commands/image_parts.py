"""What the commands about a folder of images share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands.options import Reporting, argument
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 4
"""Images in a row of a preview."""


@dataclass(kw_only=True)
class OfImages(Reporting):
    """A command about a folder of images."""

    folder: Path = argument(
        kind="run folder", positional=True, metavar="FOLDER", help="a folder of images"
    )


def write_image(path: Path, image: Image.Image, *, follow: bool = True) -> None:
    """In the format of the name's end, whole or not at all; links as in ``replacing``."""
    from PIL import Image

    from dreambooth_core.data.decode import encode
    from dreambooth_core.disk import write_bytes

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"no image format has {path.suffix or 'no end'}", where=path, do="End it with .png."
        )
    write_bytes(path, encode(image, kind), follow=follow)


def write_sheet(file: Path, images: list[Image.Image]) -> None:
    """A preview: the images side by side."""
    from dreambooth_core.evaluation.grid import Row, sheet

    rows = [Row("", images[at : at + COLUMNS]) for at in range(0, len(images), COLUMNS)]
    write_image(file, sheet(rows))
