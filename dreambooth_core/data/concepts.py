"""The concepts of a run: their options, checked, with the images that were found."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.config.suggest import advice
from dreambooth_core.data.captions import FILEWORDS, read_caption
from dreambooth_core.data.concept_options import ConceptOptions, MarkOptions, PriorOptions
from dreambooth_core.data.inventory import ImageFile, Inventory
from dreambooth_core.data.marks import GOOD, WHERE, Mark, read_marks
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.stocktaking import look_at, take_stock
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json
from dreambooth_core.randomness import permutation

ENOUGH = 8
"""Images of a subject from which on some can be spared."""


@dataclass(frozen=True)
class Example:
    """A generated image that was marked good."""

    image: ImageFile
    caption: str
    """The prompt that it was made by."""
    rival: ImageFile | None = None
    """The bad image of the same prompt that it is preferred to, in a pair."""


@dataclass(frozen=True)
class Concept:
    """One subject, ready to be trained on."""

    index: int
    options: ConceptOptions
    inventory: Inventory
    class_inventory: Inventory | None = None
    """``None`` until the class images are there, and without prior preservation."""
    class_images_wanted: int = 0
    """0 without class images."""
    held_out: int = 0
    """How many of the images are not trained on."""
    is_own_class: bool = False
    """The subject's own images stand for class images too: the base is asked about them under the
    class prompt."""
    answers: int = 0
    """How many of the base's answers about them are kept, as the base itself will change."""
    examples: tuple[Example, ...] = ()
    """Generated images that are trained on too."""
    only_examples: bool = False
    """Its own images are there, and are not trained on."""

    @property
    def name(self) -> str:
        """For reports: the name given, the prompt, or the number."""
        options = self.options
        return options.name or options.instance_prompt or f"concept {self.index + 1}"

    @property
    def images(self) -> list[ImageFile]:
        """The subject's images that are trained on."""
        held = set(self._held)
        return [p for i, p in enumerate(self.inventory.taken) if i not in held]

    @property
    def _held(self) -> list[int]:
        """Which images are held out: of any number of them and whatever seed, the same."""
        order = permutation(len(self.inventory.taken), "held out", self.index)
        return sorted(order[: self.held_out])

    def of_held_out(self) -> Concept:
        """A concept of the images that are held out alone."""
        taken = [self.inventory.taken[i] for i in self._held]
        return Concept(self.index, self.options, replace(self.inventory, taken=taken))

    @property
    def class_images(self) -> list[ImageFile]:
        """As many of the class images as are wanted, the first ones."""
        if self.is_own_class:
            return self.images
        if self.class_inventory is None:
            return []
        return self.class_inventory.taken[: self.class_images_wanted]

    def repeats_of(self, image: ImageFile) -> int:
        """Showings in an epoch: the concept's repeats times the folder's own (``10_sks dog``)."""
        return self.options.repeats * image.repeats

    @property
    def trained_images(self) -> list[ImageFile]:
        """Those of :attr:`images` that are shown as the subject."""
        return [] if self.only_examples else self.images

    @property
    def showings(self) -> int:
        """Showings of all its images in an epoch."""
        own = sum(self.repeats_of(image) for image in self.trained_images)
        return own + len(self.examples)

    def as_dict(self) -> dict[str, Any]:
        """For receipts: plain JSON values."""
        classes, pairs = self.class_inventory, sum(one.rival is not None for one in self.examples)
        marked = {"marked": {"joined": len(self.examples) - pairs, "pairs": pairs}}
        return {
            "name": self.name,
            "instance_prompt": self.options.instance_prompt,
            "class_prompt": self.options.class_prompt,
            "images": self.inventory.as_dict(),
            "class_images": classes.as_dict() if classes is not None else None,
            "class_images_used": len(self.class_images),
            "held_out": [self.inventory.taken[i].name for i in self._held],
            "showings_per_epoch": self.showings,
            **(marked if self.examples else {}),
        }


def gather(
    concepts: Sequence[ConceptOptions],
    data: DataOptions,
    prior: PriorOptions,
    *,
    seeks_best: bool = False,
    must_hold_out: bool = False,
    keeps_answers: bool = False,
) -> list[Concept]:
    """Take stock of every concept's images and check its prompts.

    Args:
        seeks_best: Whether images are held out, to tell which step is best.
        must_hold_out: Whether it cannot be told without.
        keeps_answers: Whether what the base itself answers is asked beforehand.

    Raises:
        UserError: There is no concept, a folder cannot be used, a prompt is missing. It names the
            field: ``concepts[0].class_prompt``.
    """
    if not concepts:
        raise UserError(
            "there is no concept",
            where="concepts",
            do="Give at least one, with images and an instance_prompt.",
        )
    found = []
    for index, options in enumerate(concepts):
        where = f"concepts[{index}]"
        if not options.images.strip():
            raise UserError("no folder with images is given", where=f"{where}.images")
        _check_class(options, prior, where)
        inventory = take_stock(
            options.images,
            subfolders=data.subfolders,
            exclude=[options.class_images] if options.class_images else [],
        )
        _check_captions(options, data, inventory, where)
        number = options.num_class_images or prior.num_class_images
        wanted = number if prior.makes_images else 0
        answers = number if prior.predicts and keeps_answers else 0
        held_out = _held_out(data, len(inventory.taken), seeks_best)
        found.append(
            Concept(index, options, inventory, None, wanted, held_out, prior.predicts, answers)
        )
    if must_hold_out and not any(concept.held_out for concept in found):
        raise UserError(
            "no image is held out, so which step is best cannot be told",
            where="data.held_out",
            do="Hold out one or more (of eight images and more it is one in five), or switch "
            "save.best and run.stop_when off; save.best_by=images needs none.",
        )
    return found


def _held_out(data: DataOptions, images: int, seeks_best: bool) -> int:
    if data.held_out is None:
        return images // 5 if seeks_best and images >= ENOUGH else 0
    if data.held_out >= images:
        raise UserError(
            f"{data.held_out} of {images} images are held out, which leaves none to train on",
            where="data.held_out",
            do="Hold out fewer.",
        )
    return data.held_out


def with_marks(concepts: Sequence[Concept], options: MarkOptions, *, pairs: bool) -> list[Concept]:
    """The concepts with generated images that were marked, which join the first one.

    Args:
        pairs: whether good and bad images of a prompt are pairs. Each is in one at least: what
            there is less of takes turns.

    Raises:
        UserError: the marks cannot be read, an image is missing, no prompt has what is wanted.
    """
    if not options.file:
        return list(concepts)
    marks, first = read_marks(options.file), concepts[0]
    where = f"{WHERE}: {marks.file}"

    @cache
    def image(mark: Mark) -> ImageFile:
        found = look_at(marks.file.parent / mark.image)
        if not isinstance(found, ImageFile):
            what = f"a marked image cannot be used: {mark.image}: {found.reason}"
            raise UserError(what, where=where, do="Put it back, or mark others.")
        return found

    examples, lonely = [], []
    if options.images == "joined":
        examples = [Example(image(one), one.prompt) for one in marks.of(GOOD)]
    for prompt, (good, bad) in marks.by_prompt().items() if pairs else ():
        sizes = {(image(one).width, image(one).height) for one in (*good, *bad)}
        if not good or not bad:
            lonely.append(prompt)
        elif len(sizes) > 1:
            what = f"the images of one prompt are of different sizes: {prompt}"
            raise UserError(what, where=where, do="Mark images of one size.")
        else:
            for n in range(max(len(good), len(bad))):
                won, lost = good[n % len(good)], bad[n % len(bad)]
                examples.append(Example(image(won), prompt, image(lost)))
    if pairs and not any(example.rival for example in examples):
        what = "no prompt has both a good and a bad image, so there is no pair"
        raise UserError(what, where=where, do="Mark more images, or choose another objective.loss.")
    if not examples:
        raise UserError("no image is marked good", where=where, do="Mark some.")
    if lonely:
        first.inventory.warnings.append(
            f"{len(lonely)} prompts have no good or no bad image and are in no pair, "
            f"{lonely[0]!r:.100} for one"
        )
    alone = options.images == "none"
    taught = [replace(one, only_examples=alone) for one in concepts]
    return [replace(taught[0], examples=tuple(examples)), *taught[1:]]


LARGEST_LIST = 8_000_000
"""Bytes of a list of concepts."""


def read_concepts_list(path: Path | str) -> list[ConceptOptions]:
    """A ``concepts_list.json`` as ShivamShrirao's train_dreambooth takes it.

    A list of objects with ``instance_prompt``, ``class_prompt``, ``instance_data_dir``,
    ``class_data_dir``; also ``num_class_images``, ``repeats`` and ``name``. Folders are relative to
    the working folder, or, where there is no such folder, to the file.

    Raises:
        UserError: Not such a file; an unknown key, with the nearest known one.
    """
    path = Path(os.path.expanduser(path))
    try:
        data = read_bytes(path, LARGEST_LIST).removeprefix(codecs.BOM_UTF8)
        content = parse_json(data, largest=LARGEST_LIST)
    except UserError as error:
        raise UserError(f"the list cannot be read: {error.what}", where=path) from error
    if not isinstance(content, list) or not content:
        raise UserError("this is not a list of concepts", where=path, do='Start it with "[".')
    return [_from_json(item, index, path) for index, item in enumerate(content)]


_JSON_KEYS = {
    "instance_prompt": "instance_prompt",
    "class_prompt": "class_prompt",
    "instance_data_dir": "images",
    "class_data_dir": "class_images",
    "num_class_images": "num_class_images",
    "repeats": "repeats",
    "name": "name",
}


def _from_json(item: Any, index: int, path: Path) -> ConceptOptions:
    where = f"{path} [{index}]"
    if not isinstance(item, dict):
        raise UserError("a concept is an object with keys", where=where)
    values: dict[str, Any] = {}
    for key, value in item.items():
        if key not in _JSON_KEYS:
            raise UserError(f"unknown key {key!r}", where=where, do=advice(key, _JSON_KEYS))
        if value is None:
            continue
        number = key in ("num_class_images", "repeats")
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (good if number else isinstance(value, str)):
            kind = "a whole number of at least 1" if number else "a text"
            raise UserError(f"{key} is {value!r}, which is not {kind}", where=where)
        values[_JSON_KEYS[key]] = value
    if not values.get("images"):
        raise UserError("instance_data_dir is missing", where=where)
    for key in ("images", "class_images"):
        if values.get(key):
            values[key] = _near(values[key], path.parent)
    return ConceptOptions(**values)


def _near(folder: str, beside: Path) -> str:
    """The folder as it is written, unless only the one beside the list exists."""
    plain = Path(os.path.expanduser(folder))
    other = beside / plain
    return str(other) if not plain.exists() and other.exists() else folder


def _check_class(options: ConceptOptions, prior: PriorOptions, where: str) -> None:
    if not prior.enabled:
        return
    if not options.class_prompt.strip():
        raise UserError(
            "prior preservation needs a class prompt",
            where=f"{where}.class_prompt",
            do='Name the kind of thing, like "a photo of a dog", or turn prior.enabled off.',
        )
    if options.class_images and _same(options.class_images, options.images):
        raise UserError(
            "the class images are in the folder of the subject's images",
            where=f"{where}.class_images",
            do="Give them a folder of their own.",
        )


def _check_captions(
    options: ConceptOptions, data: DataOptions, inventory: Inventory, where: str
) -> None:
    """Every image has something to be called."""
    prompt, taken = options.instance_prompt.strip(), inventory.taken
    if prompt and prompt == options.class_prompt.strip():
        inventory.warnings.append(
            "instance prompt and class prompt are the same: nothing will call the subject"
        )
    if not prompt and data.captions == "prompt":
        raise UserError("the instance prompt is empty", where=f"{where}.instance_prompt")
    bare = [image.name for image in taken if not _has_text(image)]
    if not prompt and data.captions == "filewords":
        nameless = [p.name for p in taken if not any(c.isalpha() for c in p.path.stem)]
        bare = [name for name in bare if name in nameless]
    if not bare or (prompt and data.captions != "files"):
        return
    if not prompt:
        raise UserError(
            f"the instance prompt is empty, and {bare[0]} has no caption of its own",
            where=f"{where}.instance_prompt",
            do=f'Say what the images show, like "a photo of sks dog", or use {FILEWORDS}.',
        )
    if len(bare) == len(taken):
        raise UserError(
            "captions are to come from files, and no image has one",
            where=f"{where}.images",
            do="Put a .txt file beside each image, or set data.captions to auto.",
        )
    inventory.warnings.append(
        f"{len(bare)} images have no caption file and get the instance prompt: "
        + ", ".join(bare[:5])
    )


def _has_text(image: ImageFile) -> bool:
    return image.caption is not None and bool(read_caption(image.caption))


def _same(one: str, other: str) -> bool:
    first, second = os.path.expanduser(one), os.path.expanduser(other)
    return os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second)
