"""Full fine-tune: every weight of the chosen models (DreamBooth, Ruiz et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.apply import changed
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.starting import WHERE, Start, read_start


class FullMethod(Method):
    """Trains the base's own weights."""

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        groups = []
        options, models = self.options, self.trained_models
        for model in models.values():
            model.to(dtype)
        if options.init_from:
            add_start(read_start(options.init_from, options.init_weight, models), models)
        for component, model in models.items():
            model.requires_grad_(True)
            groups.append(Trainable(component, dict(model.named_parameters())))
        return groups

    def adapter(self) -> Adapter | None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{component}.{name}": parameter.detach()
            for component, model in self.trained_models.items()
            for name, parameter in model.named_parameters()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for component, model in self.trained_models.items():
                for name, parameter in model.named_parameters():
                    parameter.copy_(tensors[f"{component}.{name}"])


@torch.no_grad()
def add_start(start: Start, models: Mapping[str, nn.Module]) -> None:
    """Adds what a run begins from to the models' weights.

    Raises:
        UserError: a change does not fit the weight that it is for.
    """
    for component, model in models.items():
        for name, weights in start.of(component).items():
            layer: Any = model.get_submodule(name)
            bias = getattr(layer, "bias", None)
            if layer.weight.is_meta:
                continue
            try:
                changes = changed(layer.weight, bias, [(weights, start.strength)])
            except UserError as error:
                what = f"{component}.{name}: {error.what}"
                raise UserError(what, where=WHERE, do=error.do) from error
            layer.weight.copy_(changes[0])
            if bias is not None and changes[1] is not None:
                bias.copy_(changes[1])
