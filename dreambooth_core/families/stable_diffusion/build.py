"""Networks of Stable Diffusion from their configurations and weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.networks import (
    UNREADABLE,
    UNRUN,
    in_precision,
    names_of,
    without_initial_values,
)
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts


def build(parts: ModelParts, *, dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The networks of a model that ``check_model`` let pass, in evaluation mode, on the CPU.

    Without ``dtype`` the parameters are the parts' own tensors (often memory maps): nothing is
    copied until it is used or changed.
    """
    return {name: build_component(name, part, dtype) for name, part in parts.components.items()}


def build_component(name: str, component: Component, dtype: torch.dtype | None = None) -> nn.Module:
    """One network from its configuration and weights."""
    model = empty(name, component.config)
    state = names_of(model.state_dict(), component.tensors)
    model.load_state_dict(in_precision(state, dtype), strict=False, assign=True)
    _fill_buffers(model)
    return model.eval()


def empty(name: str, config: Mapping[str, Any], where: str | Path | None = None) -> nn.Module:
    """A network without data, on the meta device.

    Raises:
        UserError: the library does not take this configuration.
    """
    values = {k: v for k, v in config.items() if not k.startswith("_") and k not in UNRUN}
    made = _maker(name)
    try:
        with torch.device("meta"), without_initial_values():
            return made(values)
    except UNREADABLE as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"no {name.replace('_', ' ')} can be built from this configuration: {line}",
            where=where,
        ) from error


def shapes(
    name: str, config: Mapping[str, Any], where: str | Path | None = None
) -> Mapping[str, tuple[int, ...]]:
    """The weights' names and shapes in a network of this configuration.

    Kept for the next time: a run reads its base more than once.

    Raises:
        UserError: the library does not take this configuration.
    """
    return _shapes(name, json.dumps(config, sort_keys=True), where)


@lru_cache(maxsize=32)
def _shapes(name: str, config: str, where: str | Path | None) -> dict[str, tuple[int, ...]]:
    state = empty(name, json.loads(config), where).state_dict()
    return {weight: tuple(tensor.shape) for weight, tensor in state.items()}


def _maker(name: str) -> Callable[[dict[str, Any]], nn.Module]:
    """What builds a network from its configuration.

    Imported before initial values are switched off: transformers keeps torch's functions for them
    as it finds them at its import.
    """
    kind: Any
    if name in ("unet", "vae"):
        import diffusers

        kind = diffusers.UNet2DConditionModel if name == "unet" else diffusers.AutoencoderKL
        return lambda values: cast("nn.Module", kind.from_config(values))
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
    return lambda values: cast("nn.Module", kind(CLIPTextConfig(**values)))


def _fill_buffers(model: nn.Module) -> None:
    """CLIP counts its positions in a buffer that no file needs to hold."""
    for module in model.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, torch.Tensor) and ids.device.type == "meta":
            module.register_buffer(
                "position_ids", torch.arange(ids.shape[-1]).unsqueeze(0), persistent=False
            )
