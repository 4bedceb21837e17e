"""Several processes by torch's own engines: DDP copies what is trained, FSDP2 cuts it into pieces.

Sharded is the denoiser alone, block by block; text encoders, small or out of the memory by then,
stay whole. Only what steps, saves or loads meets the pieces (``DTensor``); a forward pass sees
whole weights, a block at a time.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components
from dreambooth_core.methods.base import Trainable
from dreambooth_core.optim.pieces import cut_like, is_sharded, uncut
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.processes import Processes


def as_launched(config: TrainConfig) -> TrainConfig:
    """The configuration with what accelerate's own says about sharding, if that has any.

    Raises:
        UserError: it asks for an engine that is not used here; names what does the same.
    """
    if _is_set("ACCELERATE_USE_DEEPSPEED") or _is_set("ACCELERATE_USE_MEGATRON_LM"):
        raise UserError(
            "DeepSpeed and Megatron-LM are not used here: torch's FSDP2 shards in their place",
            where="accelerate's configuration",
            do="Choose multi-GPU in 'accelerate config' and set run.sharding to full, or to "
            "offload for what DeepSpeed calls offload_optimizer and offload_param.",
        )
    if not _is_set("ACCELERATE_USE_FSDP") or config.run.sharding != "no":
        return config
    if os.environ.get("FSDP_SHARDING_STRATEGY") in ("NO_SHARD", "3"):
        return config
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    asked = FullyShardedDataParallelPlugin(fsdp_version=2)
    sharding = "offload" if isinstance(asked.cpu_offload, CPUOffloadPolicy) else "full"
    memory = config.memory
    if asked.activation_checkpointing:
        memory = replace(memory, gradient_checkpointing=True)
    return replace(config, run=replace(config.run, sharding=sharding), memory=memory)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class Shards:
    """A denoiser in pieces, and how to see it whole."""

    processes: Processes
    parts: Components
    _skeleton: nn.Module
    """The denoiser before it was cut, without any weight."""

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, in the main process, ``parts.denoiser`` is whole and on the CPU. Every process
        must come here: each gives its pieces."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self.parts.denoiser, options=options)
        if not self.processes.is_main:
            yield
            return
        whole, sharded = copy.deepcopy(self._skeleton), self.parts.denoiser
        whole.load_state_dict(tensors, assign=True)
        dtype = next(whole.parameters()).dtype
        apply_attention(whole, "auto", torch.device("cpu"), dtype)
        self.parts.denoiser = whole
        try:
            yield
        finally:
            self.parts.denoiser = sharded

    def gathered(self, value: Any) -> Any:
        """Tensors in dicts and lists, those in pieces made whole, on the CPU; only in the main
        process they are kept. Every process must come here."""
        if isinstance(value, Mapping):
            return {key: self.gathered(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.gathered(item) for item in value]
        if is_sharded(value):
            whole = uncut(value)
            return whole.cpu() if self.processes.is_main else None
        return value


def scattered(tensors: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors cut as those of the same name in ``live`` are."""
    return {name: cut_like(value, live.get(name)) for name, value in tensors.items()}


def shard(
    parts: Components, trainables: Sequence[Trainable], processes: Processes, *, offload: bool
) -> Shards:
    """Cuts the denoiser over all processes, in place, and renews its trained parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    denoiser = parts.denoiser
    skeleton = without_weights(denoiser)
    pin = processes.device.type == "cuda"
    options: dict[str, Any] = {
        "mesh": init_device_mesh(processes.device.type, (processes.count,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=pin) if offload else OffloadPolicy(),
    }
    for block in blocks_of(denoiser):
        fully_shard(block, **options)
    fully_shard(denoiser, **options)
    for group in trainables:
        if group.component == parts.family.denoiser:
            group.parameters.update({n: denoiser.get_parameter(n) for n in group.parameters})
    return Shards(processes, parts, skeleton)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What is gathered at once, innermost first: the blocks that diffusers never splits, else the
    members of the model's lists."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [m for m in model.modules() if type(m).__name__ in names and m is not model]
    if not found:
        lists = [m for m in model.children() if isinstance(m, nn.ModuleList)]
        found = [block for each in lists for block in each]
    return [m for m in reversed(found) if any(True for _ in m.parameters())]


def without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device; buffers are as they are."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def replicated(
    losses: nn.Module, processes: Processes
) -> nn.parallel.DistributedDataParallel | None:
    """The module that computes losses by DDP, where several processes train something whole.

    Every process loads the same base and draws the same first weights, so nothing is sent before
    the first gradients. What gets none (the last layers under ``clip_skip``) is found at each step.
    """
    if processes.count == 1 or not any(p.requires_grad for p in losses.parameters()):
        return None
    engine = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(engine).parameters
    unsent: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return engine(
        losses,
        **unsent,
        init_sync=False,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )


def no_sync(ddp: nn.parallel.DistributedDataParallel | None) -> AbstractContextManager[None]:
    """Inside, gradients are only added up in this process."""
    return ddp.no_sync() if ddp is not None else nullcontext()
