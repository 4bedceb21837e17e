"""What looks at images: the encoders that come with a base, or CLIP and DINOv2 from the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreambooth_core.evaluation.scores import FOLDER, load_scorer
from dreambooth_core.vision.pretrained import Pretrained

CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dinov2-small"
SIZES = {CLIP: "605 MB", DINO: "88 MB"}
"""What is downloaded, of those that are taken unless others are named."""
AT_ONCE = 16
"""Images that are looked at together."""


class Encoders(Protocol):
    """Unit vectors of images and texts."""

    def identities(self, images: Sequence[Image.Image]) -> Tensor:
        """``[images, width]``: tells individuals apart."""

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """``[images, projection]``, to be compared with :meth:`captions`."""

    def captions(self, texts: Sequence[str]) -> Tensor:
        """``[texts, projection]``."""

    def to(self, device: torch.device) -> None:
        """Moves them to where they compute; small ones stay where they are."""


class HubEncoders:
    """CLIP for images and texts, DINO for individuals, by transformers.

    Args:
        clip: a hub id or folder of a ``CLIPModel``.
        dino: one of a vision model whose first token speaks for the image.
        download: whether what is not in the cache may be fetched.

    Raises:
        UserError: one of them is not there.
    """

    def __init__(self, clip: str, dino: str, device: torch.device, *, download: bool) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

        self.clip: Any = _load(CLIPModel, clip, download).eval()
        self.tokenizer: Any = _load(AutoTokenizer, clip, download)
        self.clip_images: Any = _load(AutoImageProcessor, clip, download)
        self.dino: Any = _load(AutoModel, dino, download).eval()
        self.dino_images: Any = _load(AutoImageProcessor, dino, download)
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Moves both to a device."""
        self.clip, self.dino, self.device = self.clip.to(device), self.dino.to(device), device

    @torch.no_grad()
    def identities(self, images: Sequence[Image.Image]) -> Tensor:
        """DINO's class token."""
        return _unit(
            self.dino(pixel_values=self._pixels(self.dino_images, some)).last_hidden_state[:, 0]
            for some in _some(images)
        )

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """CLIP's projected image embedding."""
        return _unit(
            _vector(self.clip.get_image_features(self._pixels(self.clip_images, some)))
            for some in _some(images)
        )

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """CLIP's projected text embedding."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _unit([_vector(self.clip.get_text_features(**tokens.to(self.device)))])

    def _pixels(self, processor: Any, images: Sequence[Image.Image]) -> Tensor:
        rgb = [image.convert("RGB") for image in images]
        pixels: Tensor = processor(images=rgb, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device)


def own_folder(base: Path) -> Path | None:
    """Where a base keeps encoders of its own; None if it has none."""
    folder = base / FOLDER
    return folder if (folder / "config.json").is_file() else None


def load_encoders(
    base: Path,
    device: torch.device,
    *,
    clip: str = "",
    dino: str = "",
    download: bool = False,
) -> Encoders:
    """The base's own encoders unless others are named, else CLIP and DINOv2.

    Raises:
        UserError: they are not on this machine, and may not be fetched, or cannot be.
    """
    if not (clip or dino) and own_folder(base) is not None:
        return load_scorer(base)
    return HubEncoders(clip or CLIP, dino or DINO, device, download=download)


def _load(kind: Any, name: str, download: bool) -> Any:
    wanted = Pretrained(name, SIZES.get(name, ""))
    return wanted.load("encoder", partial(kind.from_pretrained, name), download=download)


def _vector(output: Any) -> Tensor:
    """A tensor, or what newer versions of transformers wrap it in."""
    vector: Tensor = getattr(output, "pooler_output", output)
    return vector


def _unit(vectors: Iterable[Tensor]) -> Tensor:
    return F.normalize(torch.cat([*vectors]).float(), dim=-1).cpu()


def _some(images: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    return [images[at : at + AT_ONCE] for at in range(0, len(images), AT_ONCE)]
