"""What a step asks of the data: latents, conditioning, sizes and masks of a group of slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth_core.data.images import latent_mask
from dreambooth_core.data.items import Items
from dreambooth_core.data.latents import LatentCache
from dreambooth_core.data.plan import Slot
from dreambooth_core.devices import send
from dreambooth_core.families.base import Components, SizeInfo
from dreambooth_core.families.inpainting import conditions, random_mask
from dreambooth_core.families.text import Conditioning
from dreambooth_core.randomness import generator
from dreambooth_core.trainer.texts import TextSource


class Samples:
    """Turns slots into tensors on the device.

    Latents are drawn anew each time from the autoencoder's distribution, keyed by
    (seed, step, slot).
    """

    def __init__(
        self,
        parts: Components,
        items: Items,
        latents: LatentCache,
        texts: TextSource,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.parts = parts
        self.items = items
        self._latents = latents
        self._texts = texts
        self.seed = seed
        self.device = device
        self.dtype = dtype

    @property
    def has_class_images(self) -> bool:
        """Whether prior preservation is on."""
        return bool(self.items.class_pictures)

    def latents(self, group: Sequence[Slot], step: int) -> Tensor:
        """Scaled latents ``[batch, channels, height, width]``."""
        drawn = []
        for slot in group:
            distribution = self._latents.distribution(self.items.picture(slot), slot.view)
            drawn.append(distribution.sample(generator("latent", self.seed, step, slot.number)))
        return send(self.parts.family.scaled(self.parts, torch.stack(drawn)), self.device)

    def conditioning(self, group: Sequence[Slot], step: int) -> Conditioning:
        """Text conditioning of the group's captions."""
        found = self._texts.conditioning([self.items.caption(slot) for slot in group])
        return found.to(device=self.device, dtype=self.dtype)

    def inpainting(self, group: Sequence[Slot], step: int) -> Tensor | None:
        """Mask and masked latents ``[batch, 5, height, width]`` for an inpainting UNet, or None.

        Masks are keyed by (seed, step, slot); each image is encoded alone, so that the batch's
        layout changes nothing.
        """
        if not self.parts.is_inpainting:
            return None
        made = []
        for slot in group:
            pixels = self.items.pixels(self.items.picture(slot), slot.view)
            key = generator("mask", self.seed, step, slot.number)
            height, width = slot.size
            mask = random_mask(height, width, key)
            made.append(conditions(self.parts, pixels, mask))
        return send(torch.stack(made), self.device)

    def sizes(self, group: Sequence[Slot]) -> list[SizeInfo]:
        """Where each image came from."""
        items = [self.items.item(slot) for slot in group]
        return [SizeInfo(i.original_size, i.crop_top_left, i.target_size) for i in items]

    def masks(self, group: Sequence[Slot]) -> Tensor | None:
        """Weights of the loss ``[batch, 1, height, width]`` at the latents' size, or None."""
        found = [self.items.mask(slot) for slot in group]
        if all(mask is None for mask in found):
            return None
        height, width = group[0].size
        whole = torch.ones(1, height, width)
        masks = torch.stack([whole if mask is None else mask for mask in found])
        return send(latent_mask(masks, self.parts.latent_scale), self.device)
