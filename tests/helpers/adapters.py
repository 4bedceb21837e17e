"""Reduced models by family and random adapters of every method that fit them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from dreambooth_core.families.stable_diffusion.build import build
from dreambooth_core.formats.adapters.model import (
    Adapter,
    DiffWeights,
    LohaWeights,
    LokrWeights,
    LoraWeights,
    OftWeights,
    Weights,
)
from dreambooth_core.formats.checkpoints.parts import ModelParts
from tests.helpers.reduced_models import reduced_parts

METHODS = ("lora", "dora", "loha", "lokr", "oft", "diff")


@cache
def parts_of(family: str) -> ModelParts:
    """The reduced model that the adapters here fit, not to be changed."""
    # diffusers counts on two blocks a level where it reads kohya's names for SDXL.
    return reduced_parts(family, slim=family != "sdxl")


@cache
def _built(family: str) -> dict[str, nn.Module]:
    parts = parts_of(family)
    parts = ModelParts(parts.family, {**parts.components}, parts.scheduler)
    del parts.components["vae"]
    return build(parts)


def models_of(family: str) -> dict[str, nn.Module]:
    """UNet and text encoders of a reduced model, the same each time."""
    return {name: copy.deepcopy(model) for name, model in _built(family).items()}


def states_of(family: str) -> dict[str, dict[str, Tensor]]:
    """The same as state dicts in diffusers' names."""
    parts = parts_of(family)
    return {n: dict(c.tensors) for n, c in parts.components.items() if n != "vae"}


@cache
def base_of(family: str) -> dict[str, Tensor]:
    """Matrices and convolutions by canonical module name, embeddings apart."""
    return {
        f"{component}.{key.removesuffix('.weight')}": tensor
        for component, tensors in states_of(family).items()
        for key, tensor in tensors.items()
        if key.endswith(".weight")
        and tensor.ndim > 1
        and "embedding." not in f"{key}."
        and "embeddings" not in key
    }


def weights_for(
    weight: Tensor, method: str, *, rank: int = 4, alpha: float = 3.0, seed: int = 0
) -> Weights:
    """Random weights of a method for a base weight of this shape."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    out, width = weight.shape[0], math.prod(weight.shape[1:])
    kernel = tuple(weight.shape[2:])
    if method in ("lora", "dora"):
        down = draw(rank, weight.shape[1], *kernel)
        up = draw(out, rank, *[1] * len(kernel))
        scale = None
        if method == "dora":
            scale = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1)) * 1.1
        return LoraWeights(down, up, alpha, dora_scale=scale)
    if method == "loha":
        return LohaWeights(
            draw(out, rank), draw(rank, width), draw(out, rank), draw(rank, width), alpha
        )
    if method == "lokr":
        return LokrWeights(
            w1=draw(2, 2),
            w2_a=draw(out // 2, rank),
            w2_b=draw(rank, width // 2),
            alpha=alpha,
        )
    if method == "oft":
        size = 4
        return OftWeights(draw(out // size, size, size))
    return DiffWeights(draw(*weight.shape))


def adapter_for(
    family: str,
    method: str = "lora",
    *,
    rank: int = 4,
    alpha: float = 3.0,
    seed: int = 0,
    every: int = 1,
    base: Mapping[str, Tensor] | None = None,
) -> Adapter:
    """An adapter on every n-th module of a reduced model."""
    base = base if base is not None else base_of(family)
    names = [n for n in base if method not in ("lokr", "oft") or _divides(base[n])]
    modules = {
        name: weights_for(base[name], method, rank=rank, alpha=alpha, seed=seed * 1000 + i)
        for i, name in enumerate(names[::every])
    }
    return Adapter(modules, {"ss_output_name": "test"}, family)


def _divides(weight: Tensor) -> bool:
    return weight.shape[0] % 4 == 0 and weight.shape[1] % 2 == 0


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_same_change(
    one: Adapter, other: Adapter, base: Mapping[str, Tensor], tolerance: float = 1e-6
) -> None:
    """Both change the same modules by the same amount, in fp32."""
    assert set(one.modules) == set(other.modules)
    for name, weights in one.modules.items():
        expected = weights.delta(base[name])
        actual = other.modules[name].delta(base[name])
        assert relative(actual, expected) <= tolerance, name
