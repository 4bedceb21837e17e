"""Tensors in pieces: FSDP2 leaves each process its own part of a weight (``DTensor``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(value: Any) -> bool:
    """Whether a value is this process's piece of a tensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def uncut(value: Any) -> Any:
    """A tensor made whole if it is in pieces; every process must come here."""
    return value.full_tensor() if is_sharded(value) else value


def cut_like(whole: Any, live: Any) -> Any:
    """A whole tensor, which every process has, cut as ``live`` is, if that is cut and as large."""
    if not is_sharded(live) or not isinstance(whole, Tensor) or whole.shape != live.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    there = whole.to(live.device)
    return distribute_tensor(there, live.device_mesh, live.placements, src_data_rank=None)
