"""Small adapters of every family of diffusion transformers, on all layers whose names are known."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.families.names import LayerNames
from dreambooth_core.formats.adapters.model import Adapter, Weights
from tests.helpers.adapters import weights_for

WIDTH = 12
"""Divisible by 2, 3 and 4: halves, shares of grouped heads, and blocks of rotations."""


def sizes(names: LayerNames, width: int = WIDTH) -> dict[str, tuple[int, int]]:
    """``(outputs, inputs)`` of each of diffusers' layers, as the family's fused layers want it."""
    fused = {part: each for each in names.fused for part in each.parts}
    found = {}
    for template in names.templates():
        if template in fused:
            each = fused[template]
            share = each.rows[each.parts.index(template)]
            found[template] = (width * share // each.rows[0], width)
        else:
            ratio = names.ratios.get(template, 1)
            found[template] = (int(width * ratio), width)
    return found


def family_adapter(
    names: LayerNames,
    method: str = "lora",
    *,
    blocks: int = 2,
    only: tuple[str, ...] = (),
    width: int = WIDTH,
    alpha: float = 2.0,
) -> Adapter:
    """An adapter of a method on all layers, or on those whose names end as in ``only``."""
    import torch

    modules: dict[str, Weights] = {}
    for template, (out, inputs) in sizes(names, width).items():
        if only and not template.endswith(only):
            continue
        for block in range(blocks if "#" in template else 1):
            name = f"transformer.{template.replace('#', str(block))}"
            base = torch.ones(out, inputs)
            modules[name] = weights_for(base, method, alpha=alpha, seed=len(modules))
    return Adapter(modules, {}, names.family)


def native_file(names: LayerNames, path: Path, *, blocks: int = 2, width: int = WIDTH) -> Path:
    """A denoiser with random weights under the hosts' names."""
    import torch

    from dreambooth_core.formats import storage

    generator = torch.Generator().manual_seed(0)
    own = sizes(names, width)
    shapes = {native: own[template] for template, native in names.layers.items()}
    for fused in names.fused:
        shapes[fused.native] = (sum(own[part][0] for part in fused.parts), width)
    tensors = {
        f"model.diffusion_model.{key.replace('#', str(block))}.weight": torch.randn(
            *shape, generator=generator
        )
        for key, shape in shapes.items()
        for block in range(blocks if "#" in key else 1)
    }
    storage.write_tensors(path, {**tensors, "text_encoders.x.weight": torch.ones(3, 3)})
    return path
