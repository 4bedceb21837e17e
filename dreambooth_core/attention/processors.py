"""Puts the chosen kernel into diffusers models.

Stable Diffusion's UNets and autoencoders take their kernel from the processor of each attention
layer; ``set_attention_backend`` is accepted by them and changes nothing.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.attention.probe import IMPLEMENTATIONS, Kernel, choose

log = logging.getLogger(__name__)


class KernelProcessor:
    """An attention processor of diffusers that calls a kernel of ours.

    Does what ``AttnProcessor2_0`` does, for the layers of Stable Diffusion's UNets and
    autoencoders.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """``hidden_states`` ``[B, N, C]`` or ``[B, C, H, W]``, ``encoder_hidden_states``
        ``[B, M, K]`` or None for self-attention. Returns the shape of ``hidden_states``."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        is_image = hidden_states.dim() == 4
        shape = hidden_states.shape
        if is_image:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states
        if encoder_hidden_states is not None:
            context = encoder_hidden_states
            if attn.norm_cross:
                context = attn.norm_encoder_hidden_states(context)
        query = _heads(attn, attn.to_q(hidden_states))
        key = _heads(attn, attn.to_k(context))
        value = _heads(attn, attn.to_v(context))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        mask = _mask(attn, attention_mask, context)
        result = self.kernel(query, key, value, mask).to(query.dtype)
        result = attn.to_out[1](attn.to_out[0](result.transpose(1, 2).flatten(2)))
        if is_image:
            result = result.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            result = result + residual
        return result / attn.rescale_output_factor


def apply_attention(
    model: nn.Module, wanted: str, device: torch.device, dtype: torch.dtype
) -> dict[int, str]:
    """Gives every attention layer of a UNet or autoencoder the kernel for its head size.

    ``wanted`` is a choice of ``memory.attention``; ``dtype`` the one that is computed in. Layers
    with a processor of another kind are left alone. Returns the kernel of each head size.

    Raises:
        UserError: the wanted kernel cannot run (says why).
    """
    from diffusers.models.attention_processor import (
        Attention,
        AttnProcessor,
        AttnProcessor2_0,
        XFormersAttnProcessor,
    )

    ours = (KernelProcessor, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor)
    chosen: dict[int, str] = {}
    for layer in model.modules():
        if not isinstance(layer, Attention) or not isinstance(layer.processor, ours):
            continue
        size = int(layer.inner_dim) // int(layer.heads)
        if size not in chosen:
            chosen[size] = choose(wanted, device, dtype, size).kernel
        name = chosen[size]
        # torch's attention is what diffusers' own processor calls.
        processor = (
            AttnProcessor2_0() if name == "sdpa" else KernelProcessor(IMPLEMENTATIONS[name], name)
        )
        _sign(type(processor))
        layer.set_processor(processor)
    log.info("attention by head size: %s", chosen)
    return dict(sorted(chosen.items()))


def _sign(kind: Any) -> None:
    """Works out once what a processor can be given: diffusers inspects it in every pass through
    every layer."""
    if "__signature__" not in vars(kind.__call__):
        kind.__call__.__signature__ = inspect.signature(kind.__call__)


def _heads(attn: Any, projected: Tensor) -> Tensor:
    """``[B, N, H * D]`` to ``[B, H, N, D]``."""
    batch, length, width = projected.shape
    return projected.view(batch, length, attn.heads, width // attn.heads).transpose(1, 2)


def _mask(attn: Any, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """diffusers' additive mask as ``[B, H, 1 or N, M]``."""
    if mask is None:
        return None
    batch, length, _ = context.shape
    prepared: Tensor = attn.prepare_attention_mask(mask, length, batch)
    return prepared.view(batch, attn.heads, -1, prepared.shape[-1])
