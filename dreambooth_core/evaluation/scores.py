"""How good are images of a subject? Likeness, prompt fidelity, drift of the class, diversity.

The measures follow DreamBooth's evaluation (Ruiz et al. 2022, section 4.2): subject fidelity is
the mean cosine similarity between embeddings of generated and real images, prompt fidelity is
CLIP's. The embedding for likeness must tell individuals of one class apart, as DINO's does there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.clip_tokenizers import load_tokenizers
from dreambooth_core.families.text import encode_chunks, tokenise
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.vision.pretrained import Pretrained

FOLDER = "clip"
"""Where a base keeps the vision tower that belongs to its text encoder."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's colour statistics (Radford et al. 2021), where the folder names no others."""


class Scorer:
    """Embeds images and captions with the CLIP of a base.

    Args:
        vision: a ``CLIPVisionModelWithProjection``.
        text_projection: ``[projection, text width]``.
        text: the CLIP text encoder that the vision tower was trained with.
        tokenizer: its own.
        mean: colour mean that is subtracted.
        deviation: colour deviation that is divided by.
    """

    def __init__(
        self,
        vision: nn.Module,
        text_projection: Tensor,
        text: nn.Module,
        tokenizer: Any,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        self.vision: Any = vision.eval()
        self.text_projection = text_projection
        self.text, self.tokenizer = text.eval(), tokenizer
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.deviation = torch.tensor(deviation).view(3, 1, 1)

    def to(self, device: torch.device) -> None:
        """Stays: it is as small as the bases that bring one."""

    @torch.no_grad()
    def identities(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors ``[images, width]`` that tell individuals apart."""
        hidden = self.vision(pixel_values=self._pixels(images)).last_hidden_state
        body = getattr(self.vision, "vision_model", self.vision)
        return F.normalize(body.post_layernorm(hidden[:, 0]), dim=-1)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors ``[images, projection]`` to be compared with :meth:`captions`."""
        return F.normalize(self.vision(pixel_values=self._pixels(images)).image_embeds, dim=-1)

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors ``[texts, projection]``."""
        ids = tokenise(self.tokenizer, texts, max_chunks=1)
        _, pooled = encode_chunks(self.text, ids, skip=0, normalise=True)
        return F.normalize(pooled.float() @ self.text_projection.T, dim=-1)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        side = int(self.vision.config.image_size)
        arrays = [
            np.asarray(p.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
            for p in images
        ]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255.0
        return (pixels - self.mean) / self.deviation


def load_scorer(base: Path) -> Scorer:
    """The scorer that comes with a base, in its ``clip`` folder.

    The text encoder to it and its tokenizer lie there too, or are the base's own.

    Raises:
        UserError: the base comes with none.
    """
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    folder = base / FOLDER
    if not (folder / "config.json").is_file():
        raise UserError("this base comes with no vision tower to score images", where=base)
    home = folder if (folder / "text_encoder").is_dir() else base
    vision = _encoder(CLIPVisionModelWithProjection, folder)
    text = _encoder(CLIPTextModel, home / "text_encoder")
    [tokenizer] = load_tokenizers("sd1", home)
    extra = read_tensors(folder / "text_projection.safetensors", copy=True)
    mean, deviation = _statistics(folder / "preprocessor_config.json")
    projection = extra["text_projection.weight"].float()
    return Scorer(vision.float(), projection, text.float(), tokenizer, mean, deviation)


def _encoder(kind: Any, folder: Path) -> Any:
    return Pretrained(str(folder)).load("encoder", partial(kind.from_pretrained, str(folder)))


def _statistics(file: Path) -> tuple[Sequence[float], Sequence[float]]:
    if not file.is_file():
        return MEAN, DEVIATION
    found = read_json(file)
    return _colour(found, "image_mean", MEAN), _colour(found, "image_std", DEVIATION)


def _colour(found: dict[str, Any], name: str, default: Sequence[float]) -> Sequence[float]:
    value = found.get(name, default)
    several = isinstance(value, list | tuple) and len(value) == 3
    if not several or not all(isinstance(each, int | float) for each in value):
        raise UserError(f"{name} is not a colour: three numbers")
    return value


def similarity(first: Tensor, second: Tensor) -> float:
    """Mean cosine similarity of every vector of ``first`` with every one of ``second``."""
    return float((first @ second.T).mean())


def diversity(vectors: Tensor) -> float:
    """Mean cosine distance between different vectors; 0 if all images show the same."""
    count = vectors.shape[0]
    if count < 2:
        return 0.0
    alike = vectors @ vectors.T
    return float(1.0 - (alike.sum() - alike.diagonal().sum()) / (count * (count - 1)))


def agreement(images: Tensor, choices: Tensor, right: Sequence[int]) -> float:
    """The share of images whose nearest caption is the right one.

    Args:
        images: unit vectors ``[images, projection]``.
        choices: unit vectors of the captions to choose among ``[captions, projection]``.
        right: index of the right caption for each image.
    """
    nearest = (images @ choices.T).argmax(dim=1)
    return float((nearest == torch.tensor(right, device=nearest.device)).float().mean())
