"""One process or several: who am I, how processes agree, and torch's engines for their gradients.

Launchers (``accelerate launch``, ``torchrun``) tell each process its place by environment
variables. DDP copies what is trained, FSDP2 cuts the denoiser into pieces, block by block; text
encoders, small or out of the memory by then, stay whole. Only what steps, saves or loads meets the
pieces (``DTensor``); a forward pass sees whole weights, a block at a time.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.devices import choose_device, cut_like, is_sharded, uncut
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.components import Components
from dreambooth_core.methods.base import Trainable
from dreambooth_core.options import TrainConfig

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long processes wait for each other: the first may be waiting for room on the disk. Whoever
started them ends the others when one dies."""

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""Who carries tensors between the devices of a kind; gloo does where it is not there."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Only the main process writes files and events."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, where the tensor is.

        It travels over the processes' devices, which alone NCCL knows; as fp32 where it is of
        double precision, which some of them do not have.
        """
        if self.count == 1:
            return values
        narrow = values.dtype == torch.float64 and self.device.type != "cpu"
        there = values.to(self.device, torch.float32 if narrow else values.dtype, copy=True)
        torch.distributed.all_reduce(there)
        return there.to(values)

    def agree(self, found: T) -> T:
        """What the main process has heard or found, in every process: all must do the same."""
        if self.count == 1:
            return found
        said = [found]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends when every process has come here. A stop in one is a stop in all: none is left
        waiting for another that has gone.

        Raises:
            Stopped: one of them stopped inside.
        """
        if self.count == 1:
            yield
            return
        stop: Stopped | None = None
        try:
            yield
        except Stopped as error:
            stop = error
        stopped = self.sum(torch.tensor([int(stop is not None)], device=self.device))
        if stopped.item():
            raise stop or Stopped("stopped")

    def close(self) -> None:
        """Leaves the group."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


def join(device: str) -> Processes:
    """Finds this process's place and device, and joins the group if there are several.

    Raises:
        UserError: the device that the user asked for is not there.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local)
    if count > 1:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        torch.distributed.init_process_group(backend_for(chosen), timeout=PATIENCE)
    return Processes(rank=rank, count=count, device=chosen)


def backend_for(device: torch.device) -> str:
    """What the group is made of: words travel over the CPU, so that no device is waited for."""
    name = BACKENDS.get(device.type, "gloo")
    if name == "gloo" or not torch.distributed.is_backend_available(name):
        return "gloo"
    return f"cpu:gloo,{device.type}:{name}"


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


class _Pass(nn.Module):
    """A computation as a module over what is trained: DDP's hooks begin at its forward pass."""

    def __init__(self, compute: Callable[..., Any], models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.compute = compute

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the computation gives."""
        return self.compute(*given, **named)


def replicated(
    compute: Callable[..., Any], models: Sequence[nn.Module], processes: Processes
) -> nn.parallel.DistributedDataParallel | None:
    """What computes with the models by DDP, where several processes train something whole.

    Every process loads the same base and draws the same first weights, so nothing is sent before
    the first gradients. What gets none (the last layers under ``clip_skip``) is found at each step.
    """
    module = _Pass(compute, models)
    if processes.count == 1 or not any(p.requires_grad for p in module.parameters()):
        return None
    engine = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(engine).parameters
    unsent: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return engine(
        module,
        **unsent,
        init_sync=False,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )
