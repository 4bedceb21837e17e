"""Class images: which are there, which are missing, and making those.

They are kept in a folder named by what they depend on, so that a second run finds them and a run
with another base, prompt or setting never takes them for its own. Image number ``i`` is made from
a seed of its own, and always in the same company: with a batch size of 1 alone, with a batch size
of ``n`` together with those whose numbers, divided by ``n``, give the same. Kernels round
differently for other batch sizes, in the last bit; so neither the number of processes, nor an
interruption, nor the repair of a single image changes it, and a batch size of 1 makes it
independent of that too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from dreambooth_core.data.captions import FILEWORDS, fill, words_of
from dreambooth_core.data.concept_options import PriorOptions
from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.decode import encode
from dreambooth_core.data.inventory import ImageFile, Inventory, Skipped
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.stocktaking import look_at, take_stock
from dreambooth_core.disk import write_bytes, write_json, write_text
from dreambooth_core.errors import SaveFailed, Stopped
from dreambooth_core.randomness import seed_of

Make = Callable[[list[str], list[int]], list[Image.Image]]
"""Prompts and seeds → images. Each image from a generator of its own seed."""

_OURS = re.compile(r"class-([0-9a-f]{12})-(\d+)\.png")


@dataclass(frozen=True)
class Recipe:
    """Everything that a class image depends on."""

    base: str
    """Fingerprint of the base's weights."""
    prompts: tuple[str, ...]
    """Image ``i`` shows prompt ``i`` modulo their number; usually there is one."""
    negative_prompt: str = ""
    height: int = 512
    width: int = 512
    steps: int = 50
    guidance: float = 7.5
    scheduler: str = ""
    precision: str = ""
    seed: int = 0
    captioned: bool = False
    """Each image gets its prompt in a ``.txt`` beside it: they differ from image to image."""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that differ where any part differs."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def folder_name(self) -> str:
        """A name that a person recognises, and the digest."""
        words = re.sub(r"[^\w]+", "-", self.prompts[0].lower(), flags=re.ASCII).strip("-")[:40]
        return f"{words}-{self.digest}" if words else self.digest


@dataclass(frozen=True)
class ClassImages:
    """The state of one concept's class images."""

    recipe: Recipe
    wanted: int
    inventory: Inventory
    missing: tuple[int, ...] = ()
    """Indices of the images to make."""

    @property
    def folder(self) -> Path:
        """Where they are, and where the missing ones go."""
        return self.inventory.folder

    def as_dict(self) -> dict[str, object]:
        """For receipts and ``check``: plain JSON values."""
        return {
            "folder": str(self.folder),
            "wanted": self.wanted,
            "there": len(self.inventory.taken),
            "missing": len(self.missing),
            "recipe": asdict(self.recipe),
        }


def recipe_of(concept: Concept, prior: PriorOptions, data: DataOptions, base: str) -> Recipe:
    """What a concept's class images are made from; ``base`` is the fingerprint of the base.

    A class prompt with ``[filewords]`` gives as many prompts as the subject's images have texts.

    Raises:
        UserError: The size is none that the base can make.
    """
    options = concept.options
    captioned = FILEWORDS in options.class_prompt
    prompts = dict.fromkeys(
        fill(options.class_prompt, words=words_of(image) if captioned else "", name=options.name)
        for image in concept.images
    )
    height, width = data.fixed_size()
    return Recipe(
        base=base,
        prompts=tuple(prompts),
        negative_prompt=prior.negative_prompt,
        height=height,
        width=width,
        steps=prior.num_inference_steps,
        guidance=prior.guidance_scale,
        scheduler=prior.scheduler,
        precision=prior.precision,
        seed=prior.seed,
        captioned=captioned,
    )


def find_class_images(
    recipe: Recipe, wanted: int, *, kept_in: Path | str, own_folder: Path | str | None = None
) -> ClassImages:
    """Look which class images are there.

    Args:
        wanted: How many there should be.
        kept_in: The folder of the folders of generated class images.
        own_folder: A folder that the user named. If it has enough images, whatever made them,
            it is used as it is; if it has fewer, the rest is made into it.

    Raises:
        UserError: ``own_folder`` cannot be used.
    """
    folder = Path(kept_in) / recipe.folder_name
    if own_folder:
        folder = Path(os.path.expanduser(own_folder))
    inventory = take_stock(folder, subfolders=False, allow_empty=True)
    if own_folder:
        others = [p.name for p in inventory.taken if _is_others(p, recipe)]
        if others:
            inventory.warnings.append(
                f"{len(others)} class images were generated by another base, prompt or setting "
                f"and are used all the same, {others[0]} for one"
            )
    else:
        ours = [p for p in inventory.taken if _index(p, recipe) is not None]
        inventory = replace(inventory, taken=ours)
    there = {_index(image, recipe) for image in inventory.taken}
    lacking = max(wanted - len(inventory.taken), 0)
    free = (index for index in range(wanted + len(there)) if index not in there)
    missing = tuple(index for index, _ in zip(free, range(lacking), strict=False))
    return ClassImages(recipe, wanted, inventory, missing)


def make_missing(
    state: ClassImages,
    make: Make,
    *,
    batch_size: int = 4,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    save: Callable[[Callable[[], None]], None] = lambda write: write(),
) -> int:
    """Make the missing class images, or this process's share of them; returns how many.

    When all processes are done, :func:`find_class_images` finds them.

    Args:
        batch_size: Images made at once. A batch of which one is missing is made whole again.
        progress: Called with (made, to be made) of this process.
        save: Does the writing of an image; the trainer's waits while the disk is full.

    Raises:
        Stopped: ``stop`` said so between two batches; what was made stays.
        SaveFailed: An image could not be written.
    """
    mine = batches_of(state, batch_size, rank, processes)
    missing, known = set(state.missing), state.recipe.prompts
    wanted = sum(index in missing for batch in mine for index in batch)
    if mine and rank == 0:
        about = {**asdict(state.recipe), "prompts": list(state.recipe.prompts)}
        save(lambda: write_json(state.folder / f".class-{state.recipe.digest}.json", about))
    made = 0
    for batch in mine:
        if stop is not None and stop():
            raise Stopped("stopped while class images were being made", where=state.folder)
        prompts = [known[index % len(known)] for index in batch]
        # Each depends on the run of images and on its own number alone.
        images = make(prompts, [seed_of("class image", state.recipe.seed, n) for n in batch])
        for index, prompt, image in zip(batch, prompts, images, strict=True):
            if index in missing:
                save(partial(_write, state, index, prompt, image))
                made += 1
        if progress is not None:
            progress(made, wanted)
    return made


def batches_of(
    state: ClassImages, batch_size: int, rank: int = 0, processes: int = 1
) -> list[list[int]]:
    """The indices of the images that a process makes, batch by batch. Batches begin at multiples
    of their size, whatever is missing: each image is always made in the same company."""
    numbers = sorted({index // batch_size for index in state.missing})
    return [
        list(range(number * batch_size, (number + 1) * batch_size))
        for number in numbers[rank::processes]
    ]


def _write(state: ClassImages, index: int, prompt: str, image: Image.Image) -> None:
    path = state.folder / f"class-{state.recipe.digest}-{index:05d}.png"
    if state.recipe.captioned:
        # The caption goes first: an image without it would be trained under another prompt.
        write_text(path.with_suffix(".txt"), prompt + "\n")
    write_bytes(path, encode(image.convert("RGB")))
    if isinstance(seen := look_at(path), Skipped):
        raise SaveFailed(f"the class image cannot be read back: {seen.reason}", where=path)


def _index(image: ImageFile, recipe: Recipe) -> int | None:
    """The number of an image that this very recipe made."""
    match = _OURS.fullmatch(image.path.name)
    return int(match.group(2)) if match and match.group(1) == recipe.digest else None


def _is_others(image: ImageFile, recipe: Recipe) -> bool:
    match = _OURS.fullmatch(image.path.name)
    return match is not None and match.group(1) != recipe.digest
