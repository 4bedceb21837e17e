"""Writes adapters into the weights of a model, and says what rounding costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.apply import rounded, summed
from dreambooth_core.formats.adapters.merge import Part
from dreambooth_core.formats.adapters.model import component_of
from dreambooth_core.formats.adapters.naming import unfused
from dreambooth_core.formats.detect import family_label


@dataclass(frozen=True)
class Baked:
    """What a bake did."""

    modules: int
    """How many weights were changed."""
    change: float
    """‖ΔW‖ / ‖W‖ over them."""
    rounding: float
    """‖stored - exact‖ / ‖ΔW‖: the share of the change that the stored type loses."""


@dataclass
class _Sums:
    weight: float = 0.0
    change: float = 0.0
    wrong: float = 0.0

    def add(self, before: Tensor, exact: Tensor, stored: Tensor) -> None:
        self.weight += _squares(before.float())
        self.change += _squares(exact - before.float())
        self.wrong += _squares(stored.float() - exact)


def bake(
    states: Mapping[str, Mapping[str, Tensor]],
    parts: Sequence[Part],
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, dict[str, Tensor]], Baked]:
    """State dicts with the adapters added: ``W + Σ wᵢΔWᵢ`` in fp32, rounded once.

    ``states``: by component, in diffusers' names, text encoders with ``text_model.``. ``dtype``:
    the type of the changed tensors; by default each keeps its own. Tensors that no adapter
    changes are passed on untouched.

    Raises:
        UserError: an adapter changes a module that is not there, or of another size.
    """
    parts = [replace(part, adapter=unfused(part.adapter)) for part in parts]
    result = {component: dict(tensors) for component, tensors in states.items()}
    sums, count = _Sums(), 0
    for name in dict.fromkeys(n for part in parts for n in part.adapter.modules):
        component, path = name.split(".", 1)
        tensors = result.get(component_of(name), {})
        key = f"{path}.weight"
        if key not in tensors:
            family = next(p.adapter.family for p in parts if name in p.adapter.modules)
            made_for = family_label(family)
            raise UserError(
                f"the model has no {component}.{path}, which the adapter"
                f"{f', made for {made_for},' * bool(made_for)} changes",
                do="Use the adapter with the kind of model that it was made for.",
            )
        _add(tensors, path, name, parts, dtype, sums)
        count += 1
    change = math.sqrt(sums.change / sums.weight) if sums.weight else 0.0
    rounding = math.sqrt(sums.wrong / sums.change) if sums.change else 0.0
    return result, Baked(count, change, rounding)


def _add(
    tensors: dict[str, Tensor],
    path: str,
    name: str,
    parts: Sequence[Part],
    dtype: torch.dtype | None,
    sums: _Sums,
) -> None:
    before, bias = tensors[f"{path}.weight"], tensors.get(f"{path}.bias")
    active = [
        (part.adapter.modules[name], part.weight_of(name))
        for part in parts
        if name in part.adapter.modules and part.weight_of(name)
    ]
    try:
        exact, offset = summed(before, bias, active)
        stored = rounded(exact, dtype or before.dtype)
        if bias is not None and any(w.bias_delta() is not None for w, _ in active):
            tensors[f"{path}.bias"] = rounded(offset, dtype or bias.dtype)
    except UserError as error:
        raise UserError(error.what, where=name, do=error.do) from error
    sums.add(before, exact, stored)
    tensors[f"{path}.weight"] = stored


def base_weights(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights by module name, for adapters whose change depends on the base."""
    return {
        f"{component}.{key.removesuffix('.weight')}": tensor
        for component, tensors in states.items()
        for key, tensor in tensors.items()
        if key.endswith(".weight")
    }


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
