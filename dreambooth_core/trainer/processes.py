"""One process or several: who am I, on which device, and how processes agree.

Launchers (``accelerate launch``, ``torchrun``) tell each process its place by environment
variables. Gradients are the business of ``sharding``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from dreambooth_core.devices import choose_device
from dreambooth_core.errors import Stopped

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
