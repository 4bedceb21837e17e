"""Adapters in the weights of models: on them and off without a trace, or baked into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError, at
from dreambooth_core.families.names import label_of
from dreambooth_core.formats.adapters.lowrank import root, squares
from dreambooth_core.formats.adapters.merge import Part, terms_of
from dreambooth_core.formats.adapters.model import Adapter, Weights
from dreambooth_core.formats.adapters.naming import unfused
from dreambooth_core.formats.adapters.peft_state import names_in
from dreambooth_core.formats.adapters.weights import add_bias


@dataclass
class _Spot:
    """A module that adapters change, and what it was before."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None


class AdapterStack:
    """``weight = base + Σ strengthᵢ · ΔWᵢ`` on the modules themselves.

    The base's tensors are kept, so that a restored model is bit-exactly what it was; the sum is
    made in fp32 and rounded once to the base's type.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        """``models``: by component: ``unet`` or ``transformer``, ``text_encoder`` …"""
        self._models = dict(models)
        self._names = {name: names_in(name, model) for name, model in models.items()}
        self._adapters: dict[str, Adapter] = {}
        self._spots: dict[str, _Spot] = {}
        self.weights: dict[str, float] = {}
        """The loaded adapters' strengths."""

    def load(self, name: str, adapter: Adapter, weight: float = 1.0) -> None:
        """Adds an adapter, at full strength unless told otherwise. The others stay as they are.

        Raises:
            UserError: the name is taken, or the adapter does not fit the models; they are then
                left as they were.
        """
        if name in self._adapters:
            raise UserError(f"there is already an adapter named {name!r}", do="Unload it first.")
        adapter = unfused(adapter)
        self._locate(name, adapter)
        self._adapters[name] = adapter
        self.weights[name] = weight
        try:
            self._refresh(adapter)
        except UserError:
            self.unload(name)
            raise

    def unload(self, name: str) -> None:
        """Takes an adapter off; what no other adapter changes is the base again, bit for bit."""
        if name not in self._adapters:
            loaded = ", ".join(self._adapters) or "none"
            raise UserError(f"there is no adapter named {name!r}", do=f"Loaded: {loaded}.")
        adapter = self._adapters.pop(name)
        del self.weights[name]
        self._refresh(adapter)
        for module in adapter.modules:
            if not any(module in other.modules for other in self._adapters.values()):
                del self._spots[module]

    def clear(self) -> None:
        """Takes all adapters off."""
        for name in list(self._adapters):
            self.unload(name)

    def _locate(self, name: str, adapter: Adapter) -> None:
        spots: dict[str, _Spot] = {}
        missing: list[str] = []
        for path in adapter.modules:
            component, inside = path.split(".", 1)
            own = self._names.get(component, {}).get(inside)
            if own is None:
                missing.append(path)
            elif path not in self._spots:
                module = self._models[component].get_submodule(own)
                spots[path] = _kept(path, getattr(module, "base_layer", module))
        if missing:
            raise UserError(
                f"adapter {name!r} changes {len(missing)} modules that this base does not have, "
                f"the first is {missing[0]}",
                do="Use it with the kind of base that it was made for.",
            )
        self._spots.update(spots)

    @torch.no_grad()
    def _refresh(self, adapter: Adapter) -> None:
        """Makes the weights that an adapter changes anew, with all that are loaded."""
        for path in adapter.modules:
            spot = self._spots[path]
            active = [
                (other.modules[path], self.weights[name])
                for name, other in self._adapters.items()
                if path in other.modules and self.weights[name]
            ]
            with at(path):
                weight, bias = changed(spot.weight, spot.bias, active)
            layer: Any = spot.module
            layer.weight.data.copy_(weight)
            if bias is not None:
                layer.bias.data.copy_(bias)


def changed(
    weight: Tensor, bias: Tensor | None, active: Sequence[tuple[Weights, float]]
) -> tuple[Tensor, Tensor | None]:
    """A weight and its bias with the changes added in fp32 and rounded once to the base's type.

    Raises:
        UserError: shapes differ, a bias is changed that is not there, or numbers overflow.
    """
    if not active:
        return weight, bias
    exact, offset = summed(weight, bias, active)
    return rounded(exact, weight.dtype), None if bias is None else rounded(offset, bias.dtype)


def summed(
    weight: Tensor, bias: Tensor | None, active: Sequence[tuple[Weights, float]]
) -> tuple[Tensor, Tensor | None]:
    """A weight and its bias with the changes added, in fp32. Raises ``UserError``."""
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    offset = None if bias is None else bias.float().clone()
    for weights, strength in active:
        here = weights.to(device=weight.device)
        total += here.delta(weight) * strength
        shift = here.bias_delta()
        if shift is not None:
            offset = add_bias(offset, shift, strength)
    return total, offset


def rounded(exact: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A sum in the type that is stored. Raises ``UserError`` where that holds no numbers."""
    assert exact is not None
    stored = exact.to(dtype)
    if not bool(stored.isfinite().all()):
        raise UserError(
            f"with the adapters this weight has NaN or infinity in "
            f"{str(dtype).removeprefix('torch.')}",
            do="The base or an adapter is damaged, or their numbers are too large.",
        )
    return stored


def _kept(path: str, module: nn.Module) -> _Spot:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise UserError(
            f"{path} is quantised, and an adapter cannot be added to its weight",
            do="Load the base in 16 or 32 bit.",
        )
    bias = getattr(module, "bias", None)
    kept = bias.detach().clone() if isinstance(bias, Tensor) else None
    return _Spot(module, weight.detach().clone(), kept)


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
            made_for = label_of(family)
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
