"""What a step asks of the images: latents, conditioning, sizes and masks of a group of slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dreambooth_core.data.cache import LatentCache, TextCache
from dreambooth_core.data.images import latent_mask
from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import Slot
from dreambooth_core.devices import Precision, send
from dreambooth_core.families.base import Conditioning, SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.inpainting import conditions, random_mask
from dreambooth_core.objective.objective import NoisySample
from dreambooth_core.randomness import generator


@dataclass
class Samples:
    """Turns slots into tensors on the device.

    Latents are drawn anew each time from the autoencoder's distribution, keyed by
    (seed, step, slot), or by what is kept.
    """

    parts: Components
    items: Items
    """What the slots name."""
    views: LatentCache
    """Their distributions."""
    texts: TextCache | None
    """Conditioning that was encoded once; None while text encoders are trained."""
    seed: int
    precision: Precision

    def latents(self, group: Sequence[Slot], step: int) -> Tensor:
        """Scaled latents ``[batch, channels, height, width]``."""
        drawn = []
        for slot in group:
            distribution = self.views.distribution(self.items.image(slot), slot.view)
            drawn.append(distribution.sample(generator("latent", self.seed, *slot.key(step))))
        return send(self.parts.family.scaled(self.parts, torch.stack(drawn)), self.precision.device)

    def conditioning(self, group: Sequence[Slot], step: int) -> Conditioning:
        """Text conditioning of the group's captions, differentiable if the encoders are trained."""
        captions = [self.items.caption(slot) for slot in group]
        family, cache = self.parts.family, self.texts
        if cache is None:
            found = family.encode(self.parts, captions)
        else:
            kept = [Conditioning(**cache.value(caption)) for caption in captions]
            found = family.stack(kept, lambda: Conditioning(**cache.value("")))
        return found.to(device=self.precision.device, dtype=self.precision.dtype)

    def inpainting(self, group: Sequence[Slot], step: int) -> Tensor | None:
        """Mask and masked latents ``[batch, 5, height, width]`` for an inpainting UNet, or None.

        Masks are keyed as latents are; each image is encoded alone, so that the batch's
        layout changes nothing.
        """
        if not self._is_inpainting:
            return None
        made = []
        for slot in group:
            pixels = self.items.pixels(self.items.image(slot), slot.view)
            mask = random_mask(*slot.size, generator("mask", self.seed, *slot.key(step)))
            made.append(conditions(self.parts, pixels, mask))
        return send(torch.stack(made), self.precision.device)

    @cached_property
    def _is_inpainting(self) -> bool:
        return self.parts.is_inpainting

    def sizes(self, group: Sequence[Slot]) -> list[SizeInfo]:
        """Where each image came from."""
        return [SizeInfo(*self.items.sizes(slot)) for slot in group]

    def masks(self, group: Sequence[Slot]) -> Tensor | None:
        """Weights of the loss ``[batch, 1, height, width]`` at the latents' size, or None."""
        found = [self.items.mask(slot) for slot in group]
        if all(mask is None for mask in found):
            return None
        height, width = group[0].size
        whole = torch.ones(1, height, width)
        masks = torch.stack([whole if mask is None else mask for mask in found])
        return send(latent_mask(masks, self.parts.latent_scale), self.precision.device)

    def predict(
        self, noisy: NoisySample, group: Sequence[Slot], step: int, inpainting: Tensor | None
    ) -> Tensor:
        """What the denoiser answers to noisy latents ``[B, C, H, W]``, of the same shape."""
        with self.precision.autocast():
            return self.parts.family.predict(
                self.parts,
                noisy.noisy,
                noisy.timesteps,
                self.conditioning(group, step),
                self.sizes(group),
                inpainting,
            )
