"""What torch computes with here, and which attention kernels really run there."""

from __future__ import annotations

import contextlib
import platform
import warnings
from itertools import product
from typing import TYPE_CHECKING, Any

from dreambooth_core.diagnosis.facts import Device, Kernel
from dreambooth_core.diagnosis.packages import line_of

if TYPE_CHECKING:
    import torch

HEAD_SIZES = (40, 64)
"""Of SD 1.x' largest layers, and of SD 2.x and SDXL."""

BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
"""The kernels inside torch's own attention."""

_FAILURES = (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, OSError)


def build_of_torch() -> dict[str, Any]:
    """torch's version, what it was built for and how many threads it uses."""
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "threads": torch.get_num_threads(),
    }


def devices() -> list[Device]:
    """Every device that torch sees, with what it said when asked to compute."""
    import torch

    found: list[Device] = []
    if torch.cuda.is_available():
        found += [_cuda(number) for number in range(torch.cuda.device_count())]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        names = [f"xpu:{number}" for number in range(torch.xpu.device_count())]
        found += [_device(name, "Intel GPU", {}) for name in names]
    if torch.backends.mps.is_available():
        found.append(_device("mps", "Apple GPU", {}))
    capability = str(torch.backends.cpu.get_cpu_capability()).lower()
    details = {"threads": torch.get_num_threads(), "capability": capability}
    found.append(_device("cpu", platform.processor() or platform.machine(), details))
    return found


def kernels(device: str) -> list[Kernel]:
    """Runs each attention kernel forward and backward on a device, in each precision it has."""
    import torch

    from dreambooth_core.attention.probe import KERNELS, probe

    place = torch.device(device)
    tried: list[Kernel] = []
    for dtype, size in product(_dtypes(place), HEAD_SIZES):
        for kernel in KERNELS:
            said = probe(kernel, place, dtype, size)
            verdict = said.works, said.frugal, said.reason
            tried.append(Kernel(device, _name(dtype), size, kernel, *verdict))
        tried += [_backend(device, dtype, size, backend) for backend in BACKENDS]
    return tried


def _backend(device: str, dtype: torch.dtype, size: int, backend: str) -> Kernel:
    """One of the kernels inside torch's attention, with all the others switched off."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    reason = ""
    try:
        # torch explains at length why a kernel that was asked for cannot run.
        with warnings.catch_warnings(), sdpa_kernel([getattr(SDPBackend, backend)]):
            warnings.simplefilter("ignore")
            inputs = [torch.randn(1, 2, 128, size, device=device, dtype=dtype) for _ in range(3)]
            for each in inputs:
                each.requires_grad_()
            output = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
            output.float().sum().backward()
            finite = all(bool(torch.isfinite(t.grad).all()) for t in inputs if t.grad is not None)
            reason = "" if finite else "its gradients are not finite"
    except _FAILURES as error:
        reason = line_of(error)
        if "No viable backend" in reason:
            reason = "not for this device and precision"
    name = "sdpa: " + backend.lower().removesuffix("_attention")
    frugal = not reason and backend != "MATH"
    return Kernel(device, _name(dtype), size, name, not reason, frugal, reason)


def _cuda(number: int) -> Device:
    import torch

    name = f"cuda:{number}"
    try:
        properties = torch.cuda.get_device_properties(number)
    except _FAILURES as error:
        return Device(name, "GPU", 0, 0, error=line_of(error))
    details = {"capability": f"{properties.major}.{properties.minor}"}
    with contextlib.suppress(*_FAILURES):
        details["bf16"] = str(torch.cuda.is_bf16_supported(including_emulation=False)).lower()
    return _device(name, properties.name, details)


def _device(name: str, label: str, details: dict[str, Any]) -> Device:
    import torch

    from dreambooth_core.memory.measure import room

    try:
        memory = room(torch.device(name))
        value = torch.ones(64, 64, device=name, requires_grad=True)
        (value @ value).sum().backward()
        good = value.grad is not None and float(value.grad.sum()) == 2 * 64**3
    except (*_FAILURES, ImportError) as error:
        return Device(name, label, 0, 0, details, line_of(error))
    wrong = "" if good else "a product of matrices came out wrong"
    return Device(name, label, memory.free, memory.total, details, wrong)


def _dtypes(device: torch.device) -> list[torch.dtype]:
    import torch

    if device.type == "mps":
        return [torch.float32, torch.float16]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [torch.float32, torch.float16]
    return [torch.float32, torch.bfloat16]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
