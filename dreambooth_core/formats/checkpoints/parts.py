"""A whole model in memory: what a single file and a diffusers folder both hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.formats.storage import Lazy, TensorLike

FLOW = "flow_prediction"
"""diffusers' word for what a UNet answers that was trained by rectified flow."""

PREDICTIONS = ("epsilon", "v_prediction", "sample", FLOW)

CASTABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Component:
    """One network: its diffusers (or transformers) configuration and its weights."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """Weights in diffusers' names. Text encoders always with the ``text_model.`` prefix."""


@dataclass
class ModelParts:
    """A model, independent of the layout that it was stored in.

    Tensors are views on memory maps where the file allows it: nothing is read before it is used.
    """

    family: str
    components: dict[str, Component]
    """``unet``, ``vae``, ``text_encoder``, ``text_encoder_2``."""
    scheduler: dict[str, Any]
    """A diffusers scheduler configuration with its ``_class_name``."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the single file held and no component uses, in the single file's names."""
    metadata: dict[str, str] = field(default_factory=dict)
    tokenizers: dict[str, Path] = field(default_factory=dict)
    """Tokenizer folders of the model's own, by subfolder name; empty for the standard ones."""
    warnings: list[str] = field(default_factory=list)

    @property
    def prediction_type(self) -> str:
        """What the UNet was trained to answer, one of :data:`PREDICTIONS`."""
        return str(self.scheduler.get("prediction_type", "epsilon"))

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the noise schedule ends in pure noise (Lin et al., arXiv 2305.08891)."""
        return bool(self.scheduler.get("rescale_betas_zero_snr", False))


def cast(value: TensorLike, dtype: torch.dtype | None) -> TensorLike:
    """A floating-point tensor in another dtype, cast when it is written; others as they are."""
    if dtype is None or value.dtype not in CASTABLE or value.dtype == dtype:
        return value
    if isinstance(value, Lazy):
        return Lazy(value.shape, dtype, lambda: value().to(dtype))
    if value.device.type == "meta":
        return value.to(dtype)
    return Lazy(tuple(value.shape), dtype, partial(value.to, dtype))
