"""A training adapter: on the base while another adapter is trained, and in no result.

A base distilled to few steps forgets them while it is trained. With an adapter that undoes the
distillation only what is left to learn goes into the trained adapter, which is then used on the
distilled base alone. The idea, and such adapters for Z-Image Turbo and schnell, are those of
ostris' ai-toolkit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dreambooth_core.errors import UserError, at
from dreambooth_core.formats.adapters.model import LoraWeights, Weights, kind_of
from dreambooth_core.methods.starting import read_start, require_layers


class TrainingAdapter:
    """A LoRA beside a network's linear layers, whatever these are: quantised, or wrapped by peft
    later.

    Nothing is added to the weights, so that it costs its own size and is switched off without a
    trace. Its tensors take no gradients; those of what came before flow through it.

    Args:
        path: the file, of any naming.
        component: the network's name in adapters, such as ``transformer``.
        network: with its layers where they are computed.

    Raises:
        UserError: it is no LoRA, or not for this base.
    """

    def __init__(self, path: str, component: str, network: nn.Module) -> None:
        self.on = True
        self._device = next(network.parameters()).device  # a quantised layer has none
        with at("method.training_adapter"):
            found = read_start(path, {component: network})[component]
            require_layers(component, network, found)
            for name, weights in found.items():
                self._put_beside(network.get_submodule(name), weights, f"{component}.{name}")

    def _put_beside(self, layer: nn.Module, weights: Weights, name: str) -> None:
        if not isinstance(weights, LoraWeights) or weights.needs_base:
            raise UserError(
                f"a training adapter is a plain LoRA, and {name} is changed by {kind_of(weights)}",
                do="Turn it into one with `dreambooth resize`.",
            )
        up, down, _ = weights.low_rank()
        sizes = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        if sizes != (up.shape[0], down.shape[1]):
            raise UserError(
                f"the adapter is for a linear layer of {down.shape[1]} inputs and {up.shape[0]} "
                f"outputs, which {name} of this base is not",
                do="Use an adapter that was made for this base.",
            )
        up, down = up.to(self._device), down.to(self._device)

        def add(_: nn.Module, given: tuple[Any, ...], answer: Tensor) -> Tensor:
            if not self.on:
                return answer
            inputs: Tensor = given[0]
            inner = functional.linear(inputs, down.to(inputs.dtype))
            return answer + functional.linear(inner, up.to(inner.dtype)).to(answer.dtype)

        layer.register_forward_hook(add)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside, the base is as those have it who use the result."""
        self.on = False
        try:
            yield
        finally:
            self.on = True
