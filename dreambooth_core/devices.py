"""Where tensors are and in which precision: devices, autocast, the scaler of fp16, pieces of FSDP2.

Of a tensor in pieces (``DTensor``) each process has its own part.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import UserError

DTYPES = {
    "no": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "full_bf16": torch.bfloat16,
}
"""Computing precisions by the names of ``run.mixed_precision``."""

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions of files by the names of ``save.precision``."""


@dataclass
class Precision:
    """The precision of the frozen weights and of the forward pass."""

    device: torch.device
    dtype: torch.dtype
    scaler: Any
    """``torch.amp.GradScaler``; disabled, and then transparent, unless in fp16."""
    trained: torch.dtype = torch.float32
    """Of the trained weights: fp32 unless everything is in bf16."""

    caches: bool = True
    """Whether autocast keeps its copies of trained weights until the forward pass is over."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, matrix products run in half precision where that was asked for."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=self.caches)


def processor_computes_bf16() -> bool:
    """Whether this computer's processor has instructions for bf16. Without them it is about three
    times slower than in fp32, which costs memory alone."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    found: dict[str, Any] = capabilities() if capabilities else {}
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def make_precision(
    name: str, device: torch.device, *, tf32: bool = False, where: str = "run.mixed_precision"
) -> Precision:
    """The precision that ``run.mixed_precision`` names, or another option (``where``).

    Raises:
        UserError: this GPU cannot compute in it. That no CPU computes in fp16 is said in
            ``combinations``.
    """
    dtype = DTYPES[name]
    if dtype == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("this GPU does not compute in bf16", where=where, do='Use "fp16".')
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    trained = dtype if name == "full_bf16" else torch.float32
    return Precision(device, dtype, scaler, trained)


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
    if wanted in ("cuda", "xpu"):
        return torch.device(wanted, local_rank)
    _, colon, number = wanted.partition(":")
    many = getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1
    if colon and not (number.isascii() and number.isdecimal() and int(number) < many):
        raise UserError(
            f"no device {wanted!r} here",
            where="run.device",
            do=f"They are numbered from 0 to {many - 1}." if many > 1 else f"Say {kind}.",
        )
    return torch.device(wanted)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor``, in ordinary memory, on ``device``; a CUDA device goes on with its work meanwhile.

    There it is first copied into pinned memory, which torch keeps for the next time and gives away
    only when the device has read it: from ordinary memory the driver would wait for what the device
    is doing. So the tensor may be changed at once. Other devices do not promise that, and are
    waited for.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
