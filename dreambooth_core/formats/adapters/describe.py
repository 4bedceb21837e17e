"""What an adapter file is, in words and numbers, for ``dreambooth inspect``."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.lowrank import energy, squares
from dreambooth_core.formats.adapters.metadata import training_settings, trigger_words
from dreambooth_core.formats.adapters.model import (
    COMPONENTS,
    Adapter,
    DiffWeights,
    LoraWeights,
    OftWeights,
    Weights,
    block_of,
    component_of,
    kind_of,
)


def describe(adapter: Adapter, path: str | Path | None = None) -> dict[str, Any]:
    """Everything that the file tells, as plain values (see the keys below)."""
    damaged, empty = faults(adapter)
    weights = adapter.modules.values()
    metadata = adapter.metadata
    return {
        "kind": "adapter",
        "layout": layout_of(path) if path is not None else None,
        "family": adapter.family,
        "method": adapter.method,
        "methods": dict(Counter(kind_of(w) for w in weights)),
        "modules": {c: sum(1 for _ in adapter.of(c)) for c in adapter.components},
        "ranks": _counted(w.rank for w in weights if w.rank),
        "alphas": _counted(w.alpha for w in weights if w.rank),
        "targets": _targets(adapter),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "parameters": sum(
            t.numel() for w in weights for tail, t in w.tensors().items() if tail != "alpha"
        ),
        "trigger_words": trigger_words(metadata),
        "base": base_of(metadata),
        "settings": training_settings(metadata),
        "norms": block_norms(adapter, skip=set(damaged)),
        "damaged": damaged,
        "zero": empty,
        "extras": sorted(adapter.extras),
        "unknown_keys": adapter.skipped,
        "metadata": dict(metadata),
    }


def faults(adapter: Adapter) -> tuple[list[str], list[str]]:
    """``(modules with NaN or infinity, modules that change nothing)``."""
    damaged, empty = [], []
    for name, weights in adapter.modules.items():
        if not all(bool(torch.isfinite(t.float()).all()) for t in weights.tensors().values()):
            damaged.append(name)
        elif _changes_nothing(weights):
            empty.append(name)
    return damaged, empty


def block_norms(adapter: Adapter, skip: set[str] | None = None) -> dict[str, float]:
    """‖ΔW‖ per block, Frobenius; of DoRA the low-rank part, of OFT ‖Q‖: both need no base."""
    total: dict[str, float] = {}
    for name, weights in adapter.modules.items():
        if name not in (skip or ()):
            total[block_of(name)] = total.get(block_of(name), 0.0) + squared_norm(weights)
    names = sorted(total, key=lambda b: (COMPONENTS.index(component_of(b)), _natural(b)))
    return {name: math.sqrt(total[name]) for name in names}


def squared_norm(weights: Weights) -> float:
    """‖ΔW‖², or what comes closest to it without a base."""
    if isinstance(weights, OftWeights):
        blocks = weights.blocks.double()
        return squares(blocks - blocks.transpose(-1, -2))
    factors = weights.low_rank() if isinstance(weights, LoraWeights) else weights.factors()
    if factors is not None:
        return energy(factors[0], factors[1])
    plain = weights.to()
    plain.dora_scale = None
    bias = plain.bias_delta()
    total = 0.0 if bias is None else squares(bias)
    if not isinstance(plain, DiffWeights) or plain.weight is not None:
        total += squares(plain.delta())
    return total


def layout_of(path: str | Path) -> str:
    """``kohya``, ``diffusers``, ``diffusers (old)``, ``peft``, ``comfyui`` or ``other``."""
    path = Path(path)
    if path.is_dir():
        return "diffusers" if next(path.glob("pytorch_lora_weights.*"), None) else "peft"
    if path.suffix.lower() != ".safetensors":
        return "other"
    keys = list(storage.read_header(path).tensors)
    signs = {
        "kohya": r"lora_unet_|lora_te|lora_transformer_|lycoris_|oft_unet_",
        "peft": r"base_model\.model\.",
        "comfyui": r"(model\.)?diffusion_model\.|text_encoders\.",
        "diffusers": r".*\.lora_A",
        "diffusers (old)": r".*(\.lora|_lora|\.lora_linear_layer)\.down",
    }
    fitting = (name for name, sign in signs.items() if any(re.match(sign, key) for key in keys))
    return next(fitting, "other")


def base_of(metadata: Mapping[str, str]) -> str | None:
    """The base that the file says it was trained on."""
    keys = ("ss_sd_model_name", "base_model_name_or_path", "modelspec.base")
    said = (metadata.get(key, "") for key in (*keys, "ss_base_model_version"))
    return next((value for value in said if value not in ("", "None")), None)


def _changes_nothing(weights: Weights) -> bool:
    if weights.dora_scale is not None or getattr(weights, "rescale", None) is not None:
        return False
    if isinstance(weights, LoraWeights) and weights.bias is None:
        return not bool(weights.up.any()) or not bool(weights.down.any()) or weights.alpha == 0
    return squared_norm(weights) == 0.0


def _targets(adapter: Adapter) -> dict[str, int]:
    """How often each kind of module is changed: ``unet attn1.to_q``, ``text_encoder q_proj``."""
    found: Counter[str] = Counter()
    for name in adapter.modules:
        component, *parts = name.split(".")
        kinds = [part for part in parts if not part.isdigit()]
        if component in ("transformer", "other"):
            last = ".".join(re.sub(r"_[0-9]{1,3}(?=_|$)", "", kind) for kind in kinds[-2:])
        elif "net" in kinds:
            last = "ff.net.0.proj" if kinds[-1] == "proj" else "ff.net.2"
        else:
            inside = any(kind.startswith(("attn", "ff")) for kind in kinds[:-1])
            last = ".".join(kinds[-2:]) if inside else kinds[-1]
        found[f"{component} {last}"] += 1
    return dict(sorted(found.items()))


def _counted(values: Any) -> dict[str, int]:
    counts = Counter(values)
    return {f"{value:g}": counts[value] for value in sorted(counts)}


def _natural(block: str) -> tuple[Any, ...]:
    order = {"other": 0, "down_blocks": 1, "mid_block": 2, "up_blocks": 3, "layers": 1}
    kind, *number = block.split(".")[1:] or [""]
    return order.get(kind, 9), kind, int(number[0]) if number else 0
