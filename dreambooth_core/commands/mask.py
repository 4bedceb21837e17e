"""``dreambooth mask FOLDER --word WORD``: masks of what a word means, for a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.image_parts import OfImages, write_image, write_sheet
from dreambooth_core.commands.options import argument, print_json
from dreambooth_core.errors import UserError, escaped

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth_core.data.inventory import ImageFile

EXAMPLES = """\
A mask is a grey image in the folder's masks/, white where the loss counts; training takes it with
data.masks=auto. What it leaves out weighs data.unmasked_weight. Masks that are there stay, so that
a command that was stopped goes on where it ended.

examples:
  dreambooth mask dog --word "a dog" --preview seen.png --download
  dreambooth mask dog --word "a hand" --word "a leash" --invert    all but these counts
"""


@dataclass(kw_only=True)
class Options(OfImages):
    """What the command takes."""

    word: list[str] = argument(
        factory=list, repeated=True, metavar="WORDS", help="what counts; again for more"
    )
    model: str = argument("clipseg", help="clipseg, or a hub id or folder of such a model")
    threshold: float = argument(0.4, between=(0.0, 1.0), help="how likely a place must be to count")
    grow: float = argument(
        2.0, between=(0.0, 20.0), help="make it wider, in percent of the shorter side"
    )
    feather: float = argument(
        1.0, between=(0.0, 20.0), help="fade it out, in percent of the shorter side"
    )
    invert: bool = argument(False, help="what was found is left out, the rest counts")
    overwrite: bool = argument(False, help="replace masks that are there")
    dry_run: bool = argument(False, flags=["--dry-run"], help="write no masks")
    preview: Path | None = argument(
        None,
        kind="result",
        metavar="FILE",
        help="an image of all of them with their masks, to look at",
    )
    download: bool = argument(False, help="let a model that is not on this machine be fetched")
    device: str = argument("auto", help="auto, cuda, mps, xpu or cpu")


def run(args: Options) -> None:
    """Writes the masks."""
    from dreambooth_core.data.stocktaking import take_stock

    words = [word.strip() for word in args.word if word.strip()]
    if not words:
        raise UserError("nothing says what counts", where="--word", do='Give --word "a dog".')
    images = take_stock(args.folder).taken
    wanted = [one for one in images if args.overwrite or one.mask is None]
    report: dict[str, Any] = {
        "model": args.model,
        "words": words,
        "kept": len(images) - len(wanted),
        "masks": [],
    }
    previews: list[Image.Image] = []
    for told in _masks(args, words, wanted, previews) if wanted else ():
        report["masks"].append(told)
        if not args.json:
            share = told["share"]
            said = "nothing found, no mask" if share is None else f"{share:.0%} of it counts"
            print(escaped(f"{told['image']}: {said}"))
    if args.preview is not None and previews:
        write_sheet(args.preview, previews)
        report["preview"] = str(args.preview)
    if args.json:
        print_json(report)
    elif report["kept"]:
        print(f"{report['kept']} masks that were there stay; --overwrite replaces them")


def _masks(
    args: Options, words: list[str], wanted: list[ImageFile], previews: list[Image.Image]
) -> Iterator[dict[str, Any]]:
    """What became of each image, its mask written already."""
    from PIL import ImageStat

    from dreambooth_core.data.images import load_rgb
    from dreambooth_core.deferral import load_libraries
    from dreambooth_core.devices import choose_device
    from dreambooth_core.memory.advice import is_out_of_memory
    from dreambooth_core.vision.masks import Shape, load_segmenter, shown

    load_libraries()
    model = load_segmenter(args.model, choose_device(args.device), download=args.download)
    shape = Shape(args.threshold, args.grow, args.feather, args.invert)
    for file in wanted:
        image = load_rgb(replace(file, crop=None))  # a mask is of the whole image
        try:
            likely = model.find(image, words)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "the mask model does not fit into memory; masks made so far stay",
                do="Give --device cpu.",
            ) from error
        mask = shape.mask(likely, image.size)
        told: dict[str, Any] = {"image": file.name, "file": None, "share": None}
        if mask is not None:
            told["share"] = round(ImageStat.Stat(mask).mean[0] / 255, 3)
            told["file"] = str(_mask_file(file))
            if not args.dry_run:
                write_image(_mask_file(file), mask, follow=False)
            if args.preview is not None:
                previews.append(shown(image, mask))
        yield told


def _mask_file(image: ImageFile) -> Path:
    """Where an image's mask lies: where it is already, or by the image's whole name, which no two
    of a folder share, in ``masks``."""
    return image.mask or image.path.parent / "masks" / f"{image.path.name}.png"
