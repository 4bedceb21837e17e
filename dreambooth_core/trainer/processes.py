"""One process or several: who am I, on which device, and how gradients are added up.

Launchers (``accelerate launch``, ``torchrun``) tell each process its place by environment
variables. Losses are divided by the size of the *global* batch before the backward pass, so
adding gradients over processes gives exactly what one process with the whole batch would have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError


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

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in place."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, words: list[str]) -> list[str]:
        """What the main process has heard, in every process: all must stop at one step."""
        if self.count == 1:
            return words
        said = [words]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()

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
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend)
    return Processes(rank=rank, count=count, device=chosen)


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device to train on.

    Raises:
        UserError: it is not there; names those that are.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        kind = next(name for name, there in available.items() if there)
        return torch.device(kind, local_rank) if kind in ("cuda", "xpu") else torch.device(kind)
    kind = wanted.split(":")[0]
    if not available.get(kind, False):
        there = ", ".join(name for name, ok in available.items() if ok)
        raise UserError(
            f"no device {wanted!r} here",
            where="run.device",
            do=f'Use "auto" or one of: {there}. `dreambooth doctor` says more.',
        )
    return torch.device(wanted)
