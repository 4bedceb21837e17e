"""Clipping of gradients by their common norm (Pascanu et al. 2013, arXiv:1211.5063)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from dreambooth_core.optim.pieces import is_sharded, uncut

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients so that their common L2 norm is at most ``max_norm``.

    Returns the norm before clipping, a scalar. ``max_norm`` 0 only measures.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = _norm(gradients)
    # On a GPU asking for the number would wait for the device; there the scaling is cheap.
    needless = norm.device.type == "cpu" and bool(norm <= max_norm)
    if max_norm > 0 and not needless:
        for some in _alike(with_gradient):
            torch.nn.utils.clip_grads_with_norm_(some, max_norm, norm)
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all together; of those in pieces, every process has to bring its own."""
    norms = [torch.nn.utils.get_total_norm(some) for some in _alike(gradients)]
    whole = [uncut(norm) for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def _alike(tensors: list[AnyTensor]) -> list[list[AnyTensor]]:
    """Whole tensors and those in pieces apart, which no kernel takes together."""
    found = ([t for t in tensors if not is_sharded(t)], [t for t in tensors if is_sharded(t)])
    return [some for some in found if some]
