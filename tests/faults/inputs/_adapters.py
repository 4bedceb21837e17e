"""Good adapters, for generators to spoil."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NAMES = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v",
)


def lora(rank: int = 4, width: int = 32, names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """A LoRA in kohya's names."""
    made: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for name in names:
        made[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator)
        made[f"{name}.lora_up.weight"] = torch.randn(width, rank, generator=generator)
        made[f"{name}.alpha"] = torch.tensor(float(rank))
    return made


def write_lora(path: Path, **changes: Tensor) -> Path:
    """A LoRA file; ``changes`` replace tensors by name."""
    save_file({**lora(), **changes}, path)
    return path
