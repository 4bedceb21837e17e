"""Between networks and their configurations and weights, whatever the networks are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from dreambooth_core.formats.checkpoints.parts import Component

UNREADABLE = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
    *(StrictDataclassError, TypeError, ValueError),
)
"""What diffusers and transformers raise for a network or a tokenizer that is not whole."""

UNUSED = ("position_ids", "text_projection.weight")
"""Ends of weights that a file may hold beyond what its network takes."""

UNRUN = ("attn_implementation", "auto_map", "quantization_config")
"""Keys of a text encoder's configuration by which transformers loads code or packages."""


def in_precision(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Tensors with those of floating point in a dtype; None leaves them as they are."""
    if dtype is None:
        return dict(tensors)
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}


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
