"""The order in which convolutions' weights lie in memory.

In half precision a GPU's tensor cores read channels last; a tensor that comes in another order is
turned around first, in every pass. diffusers' norms turn it back, so which order wins depends on
the network and the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def frozen_convolutions(model: nn.Module) -> list[Tensor]:
    """The weights ``[out, in, height, width]`` of convolutions over more than one pixel that are
    not trained: an optimizer's states have the order of what they belong to, and saved states
    would no longer fit."""
    found = (module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    return [weight for weight in found if not weight.requires_grad and weight.shape[2:].numel() > 1]


def arrange(weights: Iterable[Tensor], name: str) -> None:
    """Puts weights into one of :data:`FORMATS`. Their values stay, and what they compute does but
    for rounding; what comes out of a convolution lies as its weight does."""
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=FORMATS[name])
