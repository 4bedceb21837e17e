"""``dreambooth caption FOLDER``: a caption beside each image, by a model that looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dreambooth_core.commands.image_parts import OfImages
from dreambooth_core.commands.options import argument, print_json
from dreambooth_core.errors import UserError, escaped

EXAMPLES = """\
models:
  blip, blip-large               short captions
  florence-2, florence-2-large   long ones
  wd-vit, wd-vit-large           Danbooru's tags, for drawings (WD Tagger v3)
  a hub id or a folder           any other that transformers asks with an image, such as Qwen3-VL

What the subject is called comes first (--trigger), the model's words follow. Take out what should
be learned as part of the subject: --never "red scarf". Captions that are there stay, so that a
command that was stopped goes on where it ended.

examples:
  dreambooth caption dog --trigger "a photo of sks dog" --never dog --never puppy --download
  dreambooth caption dog --model florence-2 --overwrite --dry-run
  dreambooth caption cat --model wd-vit --trigger "sks cat" --never "cat ears" --download
"""


MODELS = (*("blip", "blip-large", "florence-2", "florence-2-large"), *("wd-vit", "wd-vit-large"))
"""Those with short names."""


@dataclass(kw_only=True)
class Options(OfImages):
    """What the command takes."""

    model: str = argument("blip", help="a short name, a hub id, or a folder")
    trigger: str = argument("", help="what the subject is called; comes first")
    prefix: str = argument("", help="comes before everything")
    suffix: str = argument("", help="comes at the end")
    never: list[str] = argument(
        factory=list, repeated=True, metavar="WORDS", help="words that are taken out"
    )
    overwrite: bool = argument(False, help="replace captions that are there")
    dry_run: bool = argument(False, flags=["--dry-run"], help="write nothing")
    threshold: float = argument(0.35, between=(0.0, 1.0), help="taggers: how likely a tag must be")
    character_threshold: float = argument(
        0.85,
        flags=["--character-threshold"],
        between=(0.0, 1.0),
        help="taggers: how likely the name of a known character must be",
    )
    longest: int = argument(75, between=(5, 1000), help="tokens of a description")
    batch_size: int = argument(4, flags=["--batch-size"], between=(1, 1024), help="images at once")
    download: bool = argument(False, help="let a model that is not on this machine be fetched")
    device: str = argument("auto", help="auto, cuda, mps, xpu or cpu")


def run(args: Options) -> None:
    """Writes the captions."""
    from dreambooth_core.data.stocktaking import take_stock

    images = take_stock(args.folder).taken
    wanted = [one for one in images if args.overwrite or one.caption is None]
    report: dict[str, Any] = {
        "model": args.model,
        "kept": len(images) - len(wanted),
        "captions": [],
    }
    for told in _captions(args, wanted) if wanted else ():
        report["captions"].append(told)
        if not args.json:
            print(escaped(f"{told['image']}: {told['caption']}"))
    if args.json:
        print_json(report)
    elif report["kept"]:
        print(f"{report['kept']} captions that were there stay; --overwrite replaces them")


def _captions(args: Options, wanted: list[Any]) -> Iterator[dict[str, str]]:
    """Each image's caption, written as soon as it is known."""
    from dreambooth_core.data.images import load_rgb
    from dreambooth_core.deferral import load_libraries
    from dreambooth_core.devices import choose_device
    from dreambooth_core.disk import write_text
    from dreambooth_core.memory.advice import is_out_of_memory
    from dreambooth_core.vision.captions import load_captioner
    from dreambooth_core.vision.taggers import Thresholds
    from dreambooth_core.vision.wording import Wording

    load_libraries()
    device = choose_device(args.device)
    model = load_captioner(
        args.model,
        device,
        longest=args.longest,
        thresholds=Thresholds(args.threshold, args.character_threshold),
        download=args.download,
    )
    wording = Wording(args.trigger, args.prefix, args.suffix, tuple(args.never))
    for start in range(0, len(wanted), args.batch_size):
        some = wanted[start : start + args.batch_size]
        try:
            said = model.describe([load_rgb(one) for one in some])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "the caption model does not fit into memory; captions made so far stay",
                do="Set --batch-size 1, a smaller --model, or --device cpu.",
            ) from error
        for image, text in zip(some, said, strict=True):
            caption = wording.caption(text)
            file = image.caption or image.path.with_suffix(".txt")
            if not args.dry_run:
                write_text(file, caption + "\n", follow=False)
            yield {"image": image.name, "file": str(file), "said": text, "caption": caption}
