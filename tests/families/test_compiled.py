"""A denoiser whose repeated blocks are really compiled computes what it computes else.

What turns the captured graphs into machine code is torch's, and half a minute of a C++ compiler
for two widths: with ``--long`` only. That the blocks can be captured, forward and backward, without
a break is ours, and takes a second.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.families import reduced_base
from torch import Tensor

from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.trainer.placement import compile_blocks


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_blocks_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    torch.compiler.reset()
    compiler = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    parts = load_base(BaseOptions(model=str(reduced_base("sd1", tmp_path / "base", slim=True))))
    denoiser = parts.denoiser

    def answer() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        noisy = torch.randn(1, 4, 8, 8, generator=generator, requires_grad=True)
        text = torch.randn(1, 77, denoiser.config.cross_attention_dim, generator=generator)
        found = denoiser(noisy, torch.tensor([5]), text).sample
        found.square().mean().backward()
        assert noisy.grad is not None
        return found.detach(), noisy.grad

    plain = answer()
    compile_blocks(parts)
    compiled = answer()
    assert any(module._compiled_call_impl for module in denoiser.modules())
    for found, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
