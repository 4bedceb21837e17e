"""Full fine-tune: every weight of the chosen models (DreamBooth, Ruiz et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dreambooth_core.errors import at
from dreambooth_core.formats.adapters.apply import changed
from dreambooth_core.formats.adapters.model import Weights
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.starting import WHERE, read_start


class FullMethod(Method):
    """Trains the base's own weights."""

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        models = self.trained_models
        for model in models.values():
            model.to(dtype)
        if self.options.init_from:
            with at(WHERE):
                start = read_start(self.options.init_from, models)
            for component, model in models.items():
                self._begin(component, model, start[component])
        for model in models.values():
            model.requires_grad_(True)
        self._trainables = [Trainable(c, dict(m.named_parameters())) for c, m in models.items()]
        return self._trainables

    @torch.no_grad()
    def _begin(self, component: str, model: nn.Module, start: Mapping[str, Weights]) -> None:
        """Adds what the run begins from. Raises ``UserError`` where it does not fit."""
        for name, weights in start.items():
            layer: Any = model.get_submodule(name)
            if layer.weight.is_meta:
                continue
            active = [(weights, self.options.init_weight)]
            with at(WHERE, f"{component}.{name}"):
                weight, bias = changed(layer.weight, getattr(layer, "bias", None), active)
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
