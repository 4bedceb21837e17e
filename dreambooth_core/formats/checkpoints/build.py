"""Turns parts into networks, and networks back into parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from dreambooth_core.errors import UserError
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


def in_precision(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Tensors with those of floating point in a dtype; None leaves them as they are."""
    if dtype is None:
        return dict(tensors)
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}


UNREADABLE = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(StrictDataclassError, TypeError, ValueError),
)
"""What diffusers and transformers raise for a network or a tokenizer that is not whole."""

UNUSED = ("position_ids", "text_projection.weight")
"""Ends of weights that a file may hold beyond what its network takes."""

UNRUN = ("attn_implementation", "auto_map", "quantization_config")
"""Keys of a text encoder's configuration by which transformers loads code or packages."""


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


@contextmanager
def without_initial_values() -> Iterator[None]:
    """Inside, layers skip the drawing of initial weights: on the meta device it means nothing,
    and torch takes half a second to get ready for it."""
    names = ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_", "trunc_normal_")
    before = {name: getattr(nn.init, name) for name in names}
    for name in names:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)


def component_of(name: str, model: nn.Module) -> Component:
    """A network's configuration and weights, in the parts' names. Shares the weights."""
    own: Any = model.config  # transformers' has a method, diffusers' is a dictionary
    config: dict[str, Any] = own.to_dict() if hasattr(own, "to_dict") else dict(own)
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    return Component(config, prefixed(tensors) if name.startswith("text") else tensors)


def prefixed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder's weights with ``text_model.``, and without buffers."""
    own = ("embeddings.", "encoder.", "final_layer_norm.")
    return {
        f"text_model.{key}" if key.startswith(own) else key: tensor
        for key, tensor in tensors.items()
        if not key.endswith("position_ids")
    }


def names_of(own: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in the names that a network has, whatever the version of its library.

    Transformers 5 dropped the ``text_model.`` of CLIPTextModel; older ones have it."""
    if any(key.startswith("text_model.") for key in own):
        return dict(tensors)
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}


def _fill_buffers(model: nn.Module) -> None:
    """CLIP counts its positions in a buffer that no file needs to hold."""
    for module in model.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, torch.Tensor) and ids.device.type == "meta":
            module.register_buffer(
                "position_ids", torch.arange(ids.shape[-1]).unsqueeze(0), persistent=False
            )
