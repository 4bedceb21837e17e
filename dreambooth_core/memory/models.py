"""Forward passes of models without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

META = torch.device("meta")
TOKENS = 77
"""Tokens of one chunk of a prompt."""


def training_step(
    unet: nn.Module,
    text_encoders: Mapping[str, nn.Module] | None = None,
    *,
    batch: int,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    latent_scale: int = 8,
) -> Callable[[], Tensor]:
    """A training step's forward pass on the meta device, up to the loss.

    Args:
        unet: on the meta device.
        text_encoders: those that are trained, which then run in the step too.
        batch: samples at once, class images included.
        height: of the images, in pixels; ``width`` likewise.
        dtype: of the latents and of the embeddings that are not computed in the step.
        latent_scale: pixels along one side of a latent cell.
    """
    config: Any = unet.config
    shape = (batch, config.in_channels, height // latent_scale, width // latent_scale)

    def run() -> Tensor:
        latents = torch.empty(shape, dtype=dtype, device=META)
        width_of_text = config.cross_attention_dim
        if isinstance(width_of_text, (list, tuple)):
            width_of_text = width_of_text[0]
        embeds = torch.empty(batch, TOKENS, width_of_text, dtype=dtype, device=META)
        added = _added(config, batch, dtype)
        for encoder in (text_encoders or {}).values():
            embeds = _encoded(encoder, embeds, batch)
        steps = torch.empty(batch, device=META)
        prediction = unet(latents, steps, embeds, added_cond_kwargs=added).sample
        target = torch.empty_like(prediction, dtype=torch.float32)
        return (prediction.float() - target).square().flatten(1).mean()

    return run


def encoding_peak(vae: nn.Module, channels: int, *, batch: int, height: int, width: int) -> int:
    """Bytes that the autoencoder needs to encode images, its weights included.

    Without a backward pass three tensors of the first level exist at once: a convolution's
    input and output and a norm's copy.

    Args:
        channels: of that level.
    """
    weight = next(vae.parameters())
    largest = batch * channels * height * width * weight.element_size()
    return sum(p.numel() * p.element_size() for p in vae.parameters()) + 3 * largest


def _added(config: Any, batch: int, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """SDXL's pooled text and six sizes. Its embedding takes the text and six numbers' worth."""
    if config.addition_embed_type != "text_time":
        return None
    numbers = 6
    text = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
    return {
        "text_embeds": torch.empty(batch, text, dtype=dtype, device=META),
        "time_ids": torch.empty(batch, numbers, dtype=dtype, device=META),
    }


def _encoded(encoder: nn.Module, embeds: Tensor, batch: int) -> Tensor:
    """The embeddings with an encoder's share computed, so that its activations count."""
    ids = torch.zeros(batch, TOKENS, dtype=torch.int64, device=META)
    hidden: Tensor = encoder(ids, output_hidden_states=True).hidden_states[-1]
    if hidden.shape[-1] == embeds.shape[-1]:
        return hidden.to(embeds.dtype)
    # SDXL: encoders lie side by side; the rest stands for the other one.
    rest = embeds[..., hidden.shape[-1] :]
    return torch.cat([hidden.to(embeds.dtype), rest], dim=-1)
