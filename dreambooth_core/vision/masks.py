"""Masks by words: what of an image is meant, by CLIPSeg (Lüddecke and Ecker 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from dreambooth_core.vision.pretrained import Pretrained, placed

MODELS = {"clipseg": Pretrained("CIDAS/clipseg-rd64-refined", "about 0.6 GB")}

FOUND = 0.002
"""The share of an image below which a mask is taken for nothing: a speck."""


class ClipSeg:
    """Says where in an image something is: CLIPSeg and its processor."""

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device

    @torch.no_grad()
    def find(self, image: Image.Image, words: Sequence[str]) -> Tensor:
        """How likely each place shows each of the words: ``[words, h, w]`` in 0 to 1, fp32 on the
        CPU, at the model's own size."""
        inputs = self.processor(
            text=list(words), images=[image] * len(words), padding=True, return_tensors="pt"
        )
        logits: Tensor = self.model(**placed(inputs, self.model, self.device)).logits
        return logits.reshape(len(words), *logits.shape[-2:]).float().sigmoid().cpu()


def load_segmenter(name: str, device: torch.device, *, download: bool = False) -> ClipSeg:
    """A segmenter by its short name, a hub id, or a folder.

    Raises:
        UserError: as :meth:`~dreambooth_core.vision.pretrained.Pretrained.load`.
    """
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    kinds = (CLIPSegProcessor, CLIPSegForImageSegmentation)
    processor, model = (MODELS.get(name) or Pretrained(name)).load_both(
        kinds, device, "mask model", instead="clipseg", download=download
    )
    return ClipSeg(model, processor, device)


@dataclass(frozen=True)
class Shape:
    """From how likely each place is to a mask."""

    threshold: float = 0.4
    """How likely a place must be to count."""
    grow: float = 2.0
    """Percent of the image's shorter side by which the mask is made wider: edges belong to the
    subject."""
    feather: float = 1.0
    """Percent of the shorter side over which it fades out."""
    invert: bool = False
    """Whether what was found is left out."""

    def mask(self, likely: Tensor, size: tuple[int, int]) -> Image.Image | None:
        """The mask as 8-bit grey, white where the loss counts; None where nothing was found.

        Args:
            likely: ``[words, h, w]`` in 0 to 1; a place counts that shows any of the words.
            size: width and height of the image.
        """
        whole = torch.nn.functional.interpolate(
            likely.amax(dim=0)[None, None], size=(size[1], size[0]), mode="bilinear"
        )[0, 0]
        inside = whole >= self.threshold
        if float(inside.float().mean()) < FOUND:
            return None
        grey = Image.fromarray((inside.to(torch.uint8) * 255).numpy(), "L")
        side = min(size) / 100
        if round(self.grow * side):
            # A filter's size must be odd; it reaches as far on both sides.
            grey = grey.filter(ImageFilter.MaxFilter(2 * round(self.grow * side) + 1))
        if self.feather:
            grey = grey.filter(ImageFilter.GaussianBlur(self.feather * side))
        return Image.eval(grey, lambda value: 255 - value) if self.invert else grey


def shown(image: Image.Image, mask: Image.Image, side: int = 256) -> Image.Image:
    """The image with what does not count darkened, in a square of ``side`` pixels: to look at."""
    dark = Image.blend(image, Image.new("RGB", image.size, "black"), 0.75)
    return ImageOps.pad(Image.composite(image, dark, mask), (side, side), color="white")
