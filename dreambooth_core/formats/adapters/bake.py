"""Writes adapters into the weights of a model, and says what rounding costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreambooth_core.errors import UserError, at
from dreambooth_core.formats.adapters.apply import rounded, summed
from dreambooth_core.formats.adapters.lowrank import root, squares
from dreambooth_core.formats.adapters.merge import Part, terms_of
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
    weight = change = wrong = 0.0
    names = dict.fromkeys(n for part in parts for n in part.adapter.modules)
    for name in names:
        component, path = name.split(".", 1)
        tensors = result.get(component, {})
        if f"{path}.weight" not in tensors:
            family = next(p.adapter.family for p in parts if name in p.adapter.modules)
            made_for = family_label(family)
            raise UserError(
                f"the model has no {component}.{path}, which the adapter"
                f"{f', made for {made_for},' * bool(made_for)} changes",
                do="Use the adapter with the kind of model that it was made for.",
            )
        before, bias = tensors[f"{path}.weight"], tensors.get(f"{path}.bias")
        active = [(weights, strength) for weights, strength in terms_of(name, parts) if strength]
        with at(name):
            exact, offset = summed(before, bias, active)
            stored = rounded(exact, dtype or before.dtype)
            if bias is not None and any(w.bias_delta() is not None for w, _ in active):
                tensors[f"{path}.bias"] = rounded(offset, dtype or bias.dtype)
        weight += squares(before.float())
        change += squares(exact - before.float())
        wrong += squares(stored.float() - exact)
        tensors[f"{path}.weight"] = stored
    return result, Baked(len(names), root(change, weight), root(wrong, change))


def base_weights(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights by module name, for adapters whose change depends on the base."""
    return {
        f"{component}.{key.removesuffix('.weight')}": tensor
        for component, tensors in states.items()
        for key, tensor in tensors.items()
        if key.endswith(".weight")
    }
