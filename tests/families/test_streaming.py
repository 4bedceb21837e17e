"""Every family's denoiser computes the same with its blocks in RAM, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.families import reduced_base
from helpers.flow_bases import WRITERS
from torch import Tensor

from dreambooth_core.families.base import SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.memory.streaming import Streaming

SIDE = 64
BASES: dict[str, Callable[[Path], Path]] = {
    **WRITERS,
    "sd1": partial(reduced_base, "sd1"),
    "sdxl": partial(reduced_base, "sdxl"),
}


def answer(parts: Components) -> tuple[Tensor, Tensor]:
    """What the denoiser answers, and the gradient of what it was given."""
    family = parts.family
    generator = torch.Generator().manual_seed(0)
    shape = family.latent_shape(parts.configs, SIDE, SIDE)
    dtype = next(parts.denoiser.parameters()).dtype
    noisy = torch.randn(1, *shape, generator=generator).to(dtype).requires_grad_()
    with torch.no_grad():
        encoded = family.encode(parts, ["a photo of sks dog"])
    conditioning = encoded.to(device=torch.device("cpu"), dtype=dtype)
    times = torch.tensor([family.middle_time(parts)])
    sizes = [SizeInfo((SIDE, SIDE), (0, 0), (SIDE, SIDE))]
    found = family.predict(parts, noisy, times, conditioning, sizes)
    found.float().square().mean().backward()
    assert noisy.grad is not None
    return found.detach(), noisy.grad


@pytest.mark.parametrize("name", BASES)
def test_a_streamed_denoiser_answers_the_same(name: str, tmp_path: Path) -> None:
    parts = load_base(BaseOptions(model=str(BASES[name](tmp_path / name))))
    denoiser = parts.denoiser
    for parameter in denoiser.parameters():
        # Read from a file weights may lie at any address, and sums then differ in their last bits.
        parameter.data = parameter.data.clone()
    denoiser.train()
    denoiser.enable_gradient_checkpointing()
    plain = answer(parts)
    blocks = parts.family.blocks(denoiser)
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(set(inside)) == len(inside)  # none is inside another
    # What asks a network where it is looks at its first weight.
    assert id(next(denoiser.parameters())) not in inside
    streaming = Streaming(denoiser, blocks, torch.device("cpu"))
    for _ in range(2):
        streamed = answer(parts)
        assert torch.equal(streamed[0], plain[0])
        assert torch.equal(streamed[1], plain[1])
    held = sum(p.numel() for p in denoiser.parameters() if id(p) in inside)
    assert held > sum(p.numel() for p in denoiser.parameters()) / 3
    assert 0 < sum(map(bool, streaming.on_device)) <= 2
