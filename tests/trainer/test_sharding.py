"""A denoiser in pieces steps, is clipped and seen whole as one that is not; on a GPU by NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers.tiny import tiny_unet
from torch import Tensor, nn

from dreambooth_core.devices import is_sharded
from dreambooth_core.methods.base import Trainable
from dreambooth_core.optim.stepper import clip_gradients
from dreambooth_core.trainer.distributed import Processes, backend_for, replicated, shard

NVIDIA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NVIDIA)])
def alone(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """A group of one process, made of what several would use."""
    device = torch.device(request.param)
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend_for(device), store=store, rank=0, world_size=1)
    try:
        yield Processes(rank=0, count=1, device=device)
    finally:
        torch.distributed.destroy_process_group()


def step(model: nn.Module, loss: nn.Module, device: torch.device) -> Tensor:
    """One step of AdamW under clipping; returns the gradients' norm."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 4, 8, 8, generator=generator).to(device)
    text = torch.randn(1, 4, model.config.cross_attention_dim, generator=generator).to(device)  # type: ignore[union-attr, arg-type]
    loss(sample, torch.tensor([7], device=device), text).sample.square().mean().backward()
    norm = clip_gradients(model.parameters(), 0.01)
    optimizer.step()
    return norm.detach().cpu()


@pytest.mark.parametrize("offload", [False, True])
def test_pieces_step_as_the_whole_does(alone: Processes, offload: bool) -> None:
    whole, cut = tiny_unet().to(alone.device), tiny_unet()
    cut.load_state_dict(whole.state_dict())
    parts = cast("Any", SimpleNamespace(denoiser=cut, family=SimpleNamespace(denoiser="unet")))
    trainable = Trainable("unet", dict(cut.named_parameters()))
    shards = shard(parts, [trainable], alone, offload=offload)
    assert all(is_sharded(p) for p in trainable.parameters.values())
    place = "cpu" if offload else alone.device.type
    assert {p.device.type for p in trainable.parameters.values()} == {place}
    first, second = (step(model, model, alone.device) for model in (whole, cut))
    assert torch.allclose(first, second)
    with shards.whole():
        seen = parts.denoiser.state_dict()
        assert seen.keys() == whole.state_dict().keys()
        for name, tensor in whole.state_dict().items():
            assert torch.allclose(seen[name], tensor.cpu(), atol=1e-5), name
    assert parts.denoiser is cut


def test_whole_models_average_by_ddp(alone: Processes) -> None:
    plain, copied = tiny_unet().to(alone.device), tiny_unet().to(alone.device)
    copied.load_state_dict(plain.state_dict())
    ddp = replicated(copied, [copied], Processes(rank=0, count=2, device=alone.device))
    assert ddp is not None
    first, second = step(plain, plain, alone.device), step(copied, ddp, alone.device)
    assert torch.allclose(first, second)
