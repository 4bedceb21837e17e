"""From a slot of the plan to what the step needs: pixels, caption, mask, and the sizes for SDXL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

from PIL import Image
from torch import Tensor

from dreambooth_core.data import images
from dreambooth_core.data.buckets import choose, cut_share, enlargement, sizes_for
from dreambooth_core.data.captions import FILEWORDS, Captioner, caption_of, words_of
from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.inventory import ImageFile
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.plan import (
    CLASS,
    INSTANCE,
    RIVAL,
    BatchPlan,
    Entry,
    Size,
    Slot,
    View,
    crop_top_left,
    scaled,
)

_KEPT_IMAGES = 32
_KEPT_MASKS = 64
_BLOWN_UP = 1.25
_MUCH_CUT = 0.35


class Items:
    """All images of a run, and what each slot of a plan stands for.

    Args:
        concepts: With their class images where prior preservation is on.
        options: How images and captions are prepared.
        seed: Of the run.

    Raises:
        UserError: Sizes that no autoencoder can take.
    """

    def __init__(self, concepts: Sequence[Concept], options: DataOptions, *, seed: int) -> None:
        self.concepts = list(concepts)
        self.options = options
        self.seed = seed
        sizes = [sizes_for(each) for each in options.by_resolution()]
        # So that all concepts have about as many showings as the largest.
        most = max(concept.showings for concept in concepts) if options.balance_concepts else 0
        self.images: list[ImageFile] = []
        self.class_images: list[ImageFile] = []
        self.entries: list[Entry] = []
        self.class_entries: list[Entry] = []
        self.rivals: dict[int, ImageFile] = {}
        """The bad image of a pair, by the index of its good one."""
        texts, words, names = [], [], []
        self.class_captions: list[str] = []
        for concept in self.concepts:
            factor = max(round(most / concept.showings), 1) if most else 1
            about = concept.options
            for image, own in product(concept.trained_images, sizes):
                repeats = concept.repeats_of(image) * factor
                self.images.append(image)
                self.entries.append(_entry(image, own, concept.index, repeats))
                texts.append(caption_of(image, about.instance_prompt, options.captions, about.name))
                words.append(words_of(image))
                names.append(about.name)
            for example in concept.examples:
                if example.rival is not None:
                    self.rivals[len(self.images)] = example.rival
                self.images.append(example.image)
                self.entries.append(_entry(example.image, sizes[0], concept.index, 1))
                texts.append(example.caption)
                words.append("")
                names.append(about.name)
            for image in concept.class_images:
                self.class_images.append(image)
                self.class_entries.append(_entry(image, sizes[0], concept.index, 1))
                # Texts beside class images count only where the prompt asks for them.
                mode = "files" if FILEWORDS in about.class_prompt else "prompt"
                self.class_captions.append(caption_of(image, about.class_prompt, mode, about.name))
        self.captioner = Captioner(texts, options, seed=seed, words=words, names=names)
        self._rgb = lru_cache(maxsize=_KEPT_IMAGES)(self._load_scaled)
        mask = partial(images.mask, source=options.masks, floor=options.unmasked_weight)
        self._mask = lru_cache(maxsize=_KEPT_MASKS)(mask)

    def held_out(self) -> Items | None:
        """The images that are not trained on, always seen alike; None where there are none."""
        concepts = [c.of_held_out() for c in self.concepts if c.held_out]
        if not concepts:
            return None
        options = replace(
            self.options,
            flip=False,
            rotation=0.0,
            color_jitter=0.0,
            resolutions=[],
            crop="center" if self.options.crop == "random" else self.options.crop,
            templates=[],
            shuffle_caption=False,
            caption_tag_dropout_rate=0.0,
            caption_dropout_rate=0.0,
            balance_concepts=False,
        )
        return Items(concepts, options, seed=0)

    def plan(self, *, batch_size: int, accumulation: int = 1, processes: int = 1) -> BatchPlan:
        """The batches of the run over these images."""
        return BatchPlan(
            self.entries,
            self.class_entries,
            seed=self.seed,
            batch_size=batch_size,
            accumulation=accumulation,
            processes=processes,
            options=self.options,
            answers={concept.index: concept.answers for concept in self.concepts},
        )

    def image(self, slot: Slot) -> ImageFile:
        """The image that a slot names."""
        if slot.kind == RIVAL:
            return self.rivals[slot.image]
        return (self.class_images if slot.kind == CLASS else self.images)[slot.image]

    def views(self, plan: BatchPlan) -> list[tuple[ImageFile, View]]:
        """Every view that a plan over these images can ask for: what a cache is filled with.

        Raises:
            ValueError: There is no end of them (``DataOptions.has_finite_views``).
        """
        kinds = {INSTANCE: self.images, CLASS: self.class_images}
        listed = plan.views()
        found = [(kinds[kind][index], view) for kind, index, view in listed]
        paired = [(n, view) for kind, n, view in listed if kind == INSTANCE and n in self.rivals]
        return found + [(self.rivals[index], view) for index, view in paired]

    def in_pairs(self, group: Sequence[Slot]) -> tuple[list[Slot], int]:
        """A group of slots with the bad image beside each good one, and the number of pairs: the
        good images come first, then their bad ones, then whatever is in no pair."""
        paired = [s for s in group if s.kind == INSTANCE and s.image in self.rivals]
        rest = [s for s in group if s not in paired]
        return [*paired, *(replace(s, kind=RIVAL) for s in paired), *rest], len(paired)

    @property
    def recipe(self) -> str:
        """What pixels depend on besides image and view, for the key of a cache."""
        return self.options.background

    def caption(self, slot: Slot) -> str:
        """What the slot's image is said to show this time."""
        if slot.kind == CLASS:
            return self.class_captions[slot.image]
        if self.captioner.fixed is not None:
            return self.captioner.fixed[slot.image]
        return self.captioner.caption(slot.image, slot.epoch, slot.turn)

    def sizes(self, slot: Slot) -> tuple[Size, tuple[int, int], Size]:
        """What SDXL is told of a slot's image: its own size, where it is cut (top, left), and what
        is left. Sizes are (height, width)."""
        entries = self.class_entries if slot.kind == CLASS else self.entries
        original = entries[slot.image].original
        return original, crop_top_left(original, slot.view), slot.size

    def pixels(self, image: ImageFile, view: View) -> Tensor:
        """float32 [3, height, width] in [-1, 1]."""
        original = image.size
        if images.is_strip(original, view.size):
            return images.pixels(image, view, self.options.background)
        whole = scaled(original, view.size)
        return images.to_tensor(images.seen(self._rgb(image, *whole), view))

    def mask(self, slot: Slot) -> Tensor | None:
        """float32 [1, height, width], the weight of each pixel in the loss; ``None`` for all 1.

        Class images have none: the whole image is to be preserved; nor have the bad ones of pairs.
        """
        if slot.kind != INSTANCE or self.options.masks == "none":
            return None
        return self._mask(self.image(slot), slot.view)

    def all_captions(self) -> list[str] | None:
        """Every caption of the run, without doubles; ``None`` where tags vary."""
        own = self.captioner.all_captions()
        return None if own is None else list(dict.fromkeys([*own, *self.class_captions]))

    def first_captions(self) -> dict[str, str]:
        """One caption of each kind and concept as it is at first, for the receipt."""
        found: dict[str, str] = {}
        own = ("instance", self.entries, self.captioner.texts)
        for kind, entries, texts in (own, ("class", self.class_entries, self.class_captions)):
            for entry, text in zip(entries, texts, strict=True):
                several = f"{kind} {entry.concept + 1}"
                found.setdefault(kind if len(self.concepts) == 1 else several, text)
        return found

    def warnings(self) -> list[str]:
        """What a person should know of sizes and masks."""
        found = []
        if self.options.cache != "none" and not self.options.has_finite_views:
            found.append(
                "nothing is kept of the images, each is encoded anew at every step: "
                "data.crop_positions or data.variants is 0"
            )
        for image, entry in zip(self.images, self.entries, strict=True):
            factor = enlargement(entry.original, entry.size)
            if factor > _BLOWN_UP:
                found.append(f"{image.name} is small and is enlarged {factor:.1f} times")
            share = cut_share(entry.original, entry.size)
            if share > _MUCH_CUT:
                found.append(f"{share:.0%} of {image.name} is cut away")
            if self.options.masks == "files" and image.mask is None:
                found.append(f"{image.name} has no mask: all of it counts")
        return list(dict.fromkeys(found))

    def as_dict(self) -> dict[str, Any]:
        """For receipts: concepts, buckets, captions, warnings as plain JSON values."""
        buckets = Counter(f"{entry.size[1]}x{entry.size[0]}" for entry in self.entries)
        return {
            "concepts": [concept.as_dict() for concept in self.concepts],
            "buckets": dict(buckets),
            "first_captions": self.first_captions(),
            "warnings": self.warnings(),
        }

    def _load_scaled(self, image: ImageFile, height: int, width: int) -> Image.Image:
        return images.scale(images.load_rgb(image, self.options.background), (height, width))


def _entry(image: ImageFile, sizes: list[Size], concept: int, repeats: int) -> Entry:
    return Entry(image.size, choose(image.size, sizes), concept, repeats)
