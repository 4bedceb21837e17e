"""Where the text conditioning comes from: encoded once and kept, or anew at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dreambooth_core.data.texts import TextCache
from dreambooth_core.families.base import Components
from dreambooth_core.families.text import Conditioning


class TextSource:
    """Conditioning of captions.

    Args:
        cache: keeps what was encoded; None while text encoders are trained.
    """

    def __init__(self, parts: Components, cache: TextCache | None) -> None:
        self.parts = parts
        self.cache = cache

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning of a batch of captions, differentiable if the encoders are trained."""
        if self.cache is None:
            return self.parts.family.encode(self.parts, captions)
        found = [Conditioning(**self.cache.embedding(caption)) for caption in captions]
        cache = self.cache
        return self.parts.family.stack(found, lambda: Conditioning(**cache.embedding("")))


def encode_each(parts: Components, captions: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    """Conditioning of each caption ``[1, tokens, width]`` as plain tensors, for the cache."""
    found = []
    for caption in captions:
        conditioning = parts.family.encode(parts, [caption]).as_dict()
        found.append({name: _kept(tensor) for name, tensor in conditioning.items()})
    return found


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32; a mask stays what it is, since some denoisers add one of numbers to the scores."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()
