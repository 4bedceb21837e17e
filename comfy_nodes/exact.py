"""Makes an adapter mean in ComfyUI what it meant in training, where the host reckons otherwise.

Some versions of ComfyUI count OFT's strength twice, and divide DoRA's magnitude by the norms of
the base's rows where the paper (Liu et al. 2024, arXiv:2402.09353) has those of the changed ones.
Neither is assumed: two small weights tell what this host does.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("dreambooth")

DORA, UP, DOWN, OFT = ".dora_scale", ".lora_up.weight", ".lora_down.weight", ".oft_blocks"


def strengths_for(state: dict[str, Tensor], strength: float) -> float:
    """What to tell the host so that the adapter counts with ``strength``."""
    only_oft = any(key.endswith(OFT) for key in state) and not any(UP in key for key in state)
    if only_oft and strength > 0 and counts_oft_twice():
        return math.sqrt(strength)
    return strength


def with_exact_dora(state: dict[str, Tensor], model: Any, clip: Any) -> dict[str, Tensor]:
    """The state with DoRA's magnitudes as this host's formula needs them.

    The host computes m · (W + Δ) / ‖W‖; m · ‖W‖ / ‖W + Δ‖ in m's place makes it the paper's.
    """
    scales = [key for key in state if key.endswith(DORA)]
    if not scales or not divides_by_base_norm():
        return state
    mended = dict(state)
    bases = _bases(model, clip)
    for key in scales:
        name = key.removesuffix(DORA)
        weight = bases(name)
        up, down = state.get(name + UP), state.get(name + DOWN)
        if weight is None or up is None or down is None or state[key].shape[0] != up.shape[0]:
            continue
        alpha = state.get(f"{name}.alpha")
        scale = float(alpha) / down.shape[0] if alpha is not None else 1.0
        before = weight.float().flatten(1)
        after = before + scale * up.float().flatten(1) @ down.float().flatten(1)
        ratio = before.norm(dim=1) / after.norm(dim=1)
        mended[key] = state[key].float() * ratio.reshape(state[key].shape)
    return mended


def _bases(model: Any, clip: Any) -> Any:
    """A function from a kohya name to the unpatched weight that it changes."""
    import comfy.lora
    import comfy.utils

    places: dict[str, tuple[Any, str]] = {}
    patcher = getattr(clip, "patcher", None)
    if model is not None:
        keys = comfy.lora.model_lora_keys_unet(model.model, {})
        places |= {name: (model, key) for name, key in keys.items() if isinstance(key, str)}
    if patcher is not None:
        keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        places |= {name: (patcher, key) for name, key in keys.items() if isinstance(key, str)}

    def find(name: str) -> Tensor | None:
        if name not in places:
            return None
        owner, key = places[name]
        kept = owner.backup.get(key)
        found: Tensor = kept.weight if kept else comfy.utils.get_attr(owner.model, key)
        return found.detach().cpu()

    return find


@functools.cache
def counts_oft_twice() -> bool:
    """Whether half the strength has a quarter of the effect here."""
    import torch

    state = {"x.oft_blocks": torch.tensor([[[0.0, 0.3], [0.0, 0.0]]])}
    base = torch.eye(2)
    whole, half = (_patched(state, base, strength) - base for strength in (1.0, 0.5))
    return bool(torch.allclose(half, whole * 0.25, atol=1e-5))


@functools.cache
def divides_by_base_norm() -> bool:
    """Whether DoRA's formula here has ‖W‖ in place of ‖W + Δ‖."""
    import torch

    one = torch.ones(2, 1)
    state = {
        "x.lora_up.weight": one,
        "x.lora_down.weight": torch.ones(1, 2),
        "x.dora_scale": one.clone(),
    }
    # W = I, Δ = 1: the rows (2, 1) of W + Δ have norm √5, those of W have norm 1.
    found = _patched(state, torch.eye(2), 1.0)
    return bool(torch.allclose(found.norm(dim=1), torch.full((2,), math.sqrt(5.0)), atol=1e-4))


def _patched(state: dict[str, Tensor], base: Tensor, strength: float) -> Tensor:
    """A weight as this host patches it."""
    import comfy.lora

    loaded = comfy.lora.load_lora({k: v.clone() for k, v in state.items()}, {"x": "x.weight"})
    patches = [(strength, patch, 1.0, None, None) for patch in loaded.values()]
    found: Tensor = comfy.lora.calculate_weight(patches, base.clone(), "x.weight")
    return found
