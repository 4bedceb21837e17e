"""Clipping of gradients by their common norm (Pascanu et al. 2013, arXiv:1211.5063)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients so that their common L2 norm is at most ``max_norm``.

    Returns the norm before clipping, a scalar. ``max_norm`` 0 only measures.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(gradients)
    # On a GPU asking for the number would wait for the device; there the scaling is cheap.
    needless = norm.device.type == "cpu" and bool(norm <= max_norm)
    if max_norm > 0 and not needless:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
