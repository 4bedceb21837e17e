"""Latents as rows of tokens, two cells by two in each: Flux.1, Qwen-Image and others."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(latents: Tensor) -> Tensor:
    """``[batch, c, 2h, 2w]`` to ``[batch, h·w, 4c]``; of a token's numbers the channel varies
    slowest, then the row."""
    batch, channels, height, width = latents.shape
    rows, columns = height // 2, width // 2
    split = latents.reshape(batch, channels, rows, 2, columns, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, 4 * channels)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse, for latents of this height and width."""
    batch, _, numbers = tokens.shape
    split = tokens.reshape(batch, height // 2, width // 2, numbers // 4, 2, 2)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, numbers // 4, height, width)


def image_ids(latents: Tensor) -> Tensor:
    """Where each token of packed latents stands: ``[h·w, 3]`` of 0, row and column."""
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    on, dtype = latents.device, latents.dtype
    ids = torch.zeros(rows, columns, 3, device=on, dtype=dtype)
    ids[..., 1] = torch.arange(rows, device=on, dtype=dtype)[:, None]
    ids[..., 2] = torch.arange(columns, device=on, dtype=dtype)
    return ids.reshape(rows * columns, 3)
