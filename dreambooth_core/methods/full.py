"""Full fine-tune: every weight of the chosen models (DreamBooth, Ruiz et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.methods.base import Method, Trainable


class FullMethod(Method):
    """Trains the base's own weights."""

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        groups = []
        for component, model in self.trained_models.items():
            model.to(dtype).requires_grad_(True)
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
