"""``dreambooth crop FOLDER``: which part of each image is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.image_parts import OfImages, write_sheet
from dreambooth_core.commands.options import argument, tell
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth_core.data.inventory import ImageFile

EXAMPLES = """\
A crop lies beside its image, as dog.jpg.crop.json, and training takes it; the image stays as it
is. It is suggested by what stands out from the image's edges, or by the image's mask where it has
one. Crops that are there stay.

examples:
  dreambooth crop dog                                    which images have one
  dreambooth crop dog --suggest --ratio 1:1 --preview seen.png
  dreambooth crop dog --clear                            train on whole images again
"""


@dataclass(kw_only=True)
class Options(OfImages):
    """What the command takes."""

    suggest: bool = argument(False, help="write a crop for each image that has none")
    clear: bool = argument(False, help="delete the crops; the images stay")
    margin: float = argument(
        10.0, between=(0.0, 100.0), help="percent of the subject left around it"
    )
    ratio: str = argument("", metavar="W:H", help="the crops' shape, such as 1:1 or 3:4")
    least: int = argument(
        512, between=(0, 16384), help="pixels that each side of a crop keeps if it can"
    )
    overwrite: bool = argument(False, help="replace crops that are there")
    dry_run: bool = argument(False, flags=["--dry-run"], help="write and delete nothing")
    preview: Path | None = argument(
        None,
        kind="result",
        metavar="FILE",
        help="an image of all of them with their crops, to look at",
    )


def run(args: Options) -> None:
    """Writes, deletes or lists crops."""
    from dreambooth_core.data.stocktaking import take_stock

    if args.suggest and args.clear:
        raise UserError("crops are to be suggested and deleted", do="Give one of the two.")
    ratio = _ratio(args.ratio)
    # What is to be replaced or deleted need not be whole.
    replaced = args.clear or (args.suggest and args.overwrite)
    images = take_stock(args.folder, crops=not replaced).taken
    told = list(_cleared(args, images) if args.clear else _found(args, ratio, images))
    if args.preview is not None:
        _preview(args.preview, images, told)
    tell(args, {"images": told}, (f"{one['image']}: {one['what']}" for one in told))


def _ratio(text: str) -> float | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5}(?:\.\d{1,5})?):(\d{1,5}(?:\.\d{1,5})?)", text)
    if match is None or not all(map(float, match.groups())):
        raise UserError(f"{text[:60]!r} is no shape", where="--ratio", do="Write 1:1 or 3:4.")
    return float(match[1]) / float(match[2])


def _cleared(args: Options, images: list[ImageFile]) -> Iterator[dict[str, Any]]:
    from dreambooth_core.disk import remove

    for image in images:
        file = image.crop_file
        if file is None:
            continue
        if not args.dry_run and not remove(file):
            raise UserError("this crop cannot be deleted", where=file)
        yield {"image": image.name, "what": "its crop is gone", "crop": None, "file": str(file)}


def _found(args: Options, ratio: float | None, images: list[ImageFile]) -> Iterator[dict[str, Any]]:
    from dreambooth_core.data.crops import file_for, write_crop
    from dreambooth_core.data.images import load_mask, load_rgb
    from dreambooth_core.data.saliency import Wish, suggest

    wish = Wish(args.margin / 100, ratio, args.least)
    for image in images:
        crop, file, what = image.crop, image.crop_file, "whole"
        if crop is not None:
            what = "cropped to {1} x {0}".format(*image.size)
        if args.suggest and (args.overwrite or file is None):
            whole = replace(image, crop=None)
            crop = suggest(load_rgb(whole), wish, load_mask(whole))
            what = "whole: nothing stands out from its edges"
            if crop is not None:
                file = file or file_for(image.path)
                high, wide = crop.size(image.width, image.height)
                what = f"cropped to {wide} x {high}"
                if not args.dry_run:
                    write_crop(file, crop)
        yield {
            "image": image.name,
            "what": what,
            "crop": None if crop is None else asdict(crop),
            "file": None if crop is None else str(file),
        }


def _preview(file: Path, images: list[ImageFile], told: list[dict[str, Any]]) -> None:
    """All images, dark outside their crops."""
    from dreambooth_core.data.crops import Crop
    from dreambooth_core.data.images import load_rgb
    from dreambooth_core.vision.masks import shown

    by_name = {image.name: image for image in images}
    seen: list[Image.Image] = []
    for one in told:
        whole = load_rgb(replace(by_name[one["image"]], crop=None))
        seen.append(shown(whole, _light(whole.size, one["crop"] and Crop(**one["crop"]))))
    if seen:
        write_sheet(file, seen)


def _light(size: tuple[int, int], crop: Any) -> Image.Image:
    """A mask of an image of that size, white inside the crop."""
    from PIL import Image

    mask = Image.new("L", size, 0 if crop else 255)
    if crop:
        mask.paste(255, crop.box(*size))
    return mask
