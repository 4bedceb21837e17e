"""Which attention kernel really works here: each is run forward and backward, and checked.

That a library can be imported says nothing: a build for another torch, a GPU that its backward
pass does not support or a head size that it does not know show only when it runs, and some then
give wrong gradients without a word, so that nothing is learned.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreambooth_core.attention.chunked import chunked_attention, without_autocast
from dreambooth_core.errors import FAILURES, UserError

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Takes query ``[B, H, N, D]``, key and value ``[B, H, M, D]`` and a mask or None."""

KERNELS = ("xformers", "sdpa", "chunked")
"""In the order in which ``auto`` tries them."""

# Half precision rounds at 1/256 and 1/2048; TF32 at 1/2048 too.
_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.02}
_SHAPES = ((128, 128), (80, 77))
"""Queries and keys of the trials: self-attention, and 77 tokens, a size no kernel likes."""


@dataclass(frozen=True)
class Verdict:
    """What a trial found out."""

    kernel: str
    works: bool
    frugal: bool
    """Whether its memory grows with the sequence, not with its square."""
    reason: str
    """Why not, where ``works`` or ``frugal`` is false."""


def xformers_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """xformers' memory-efficient attention. Shapes as in :data:`Kernel`."""
    import xformers.ops

    heads_last = [t.transpose(1, 2).contiguous() for t in (query, key, value)]
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2]).to(query.dtype)
    result: Tensor = xformers.ops.memory_efficient_attention(*heads_last, attn_bias=mask)
    return result.transpose(1, 2)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """torch's attention, whichever kernel it chooses. Shapes as in :data:`Kernel`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


IMPLEMENTATIONS: dict[str, Kernel] = {
    "xformers": xformers_attention,
    "sdpa": sdpa_attention,
    "chunked": chunked_attention,
}


def choose(wanted: str, device: torch.device, dtype: torch.dtype, head_size: int) -> Verdict:
    """The kernel to use for a head size.

    ``auto`` takes the first that works and whose memory does not grow with the square of the
    sequence, else the first that works. So does ``fastest``, before any is tried in a run.

    Raises:
        UserError: ``wanted`` names a kernel that cannot run here (says why), or is unknown; no
            kernel runs at all.
    """
    if wanted not in ("auto", "fastest"):
        if wanted not in KERNELS:
            raise UserError(
                f"attention {wanted!r} is not known",
                where="memory.attention",
                do=f"Known are auto, fastest, {', '.join(KERNELS)}.",
            )
        verdict = probe(wanted, device, dtype, head_size)
        if not verdict.works:
            raise UserError(
                f"{wanted} attention cannot run on {device.type} in {_name(dtype)} with heads of "
                f"{head_size}: {verdict.reason}",
                where="memory.attention",
                do="Choose auto.",
            )
        return verdict
    working = []
    for name in KERNELS:
        verdict = probe(name, device, dtype, head_size)
        if verdict.works and verdict.frugal:
            return verdict
        log.debug("attention %s passed over: %s", name, verdict.reason)
        if verdict.works:
            working.append(verdict)
    if not working:
        raise UserError(
            f"no attention kernel runs on {device.type} in {_name(dtype)}", where="run.device"
        )
    return working[0]


def probe(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> Verdict:
    """Runs a kernel forward and backward and compares it with plain attention. Remembered."""
    index: int | None = getattr(device, "index", None)  # declared as never None, but it is
    if index is None and device.type == "cuda":
        index = torch.cuda.current_device()
    return _probe(kernel, device.type, index, dtype, head_size)


@functools.lru_cache(maxsize=256)
def _probe(
    kernel: str, device_type: str, index: int | None, dtype: torch.dtype, head_size: int
) -> Verdict:
    device = torch.device(device_type) if index is None else torch.device(device_type, index)
    frugal, reason = True, ""
    try:
        # A trial must also run where gradients are off for now, or autocast is on.
        with torch.enable_grad(), torch.inference_mode(False), without_autocast(device):
            for queries, keys in _SHAPES:
                inputs = _inputs(queries, keys, device, dtype, head_size)
                output = IMPLEMENTATIONS[kernel](*inputs, None)
                # Whether torch chose a fused kernel is seen from what will run backward.
                ran = output.grad_fn.name() if output.grad_fn is not None else ""
                if kernel == "sdpa" and "ScaledDotProduct" not in ran:
                    frugal = False
                    reason = "torch has only its math kernel here"
                wrong = _compare(output, inputs)
                if wrong:
                    return Verdict(kernel, False, False, wrong)
    except (*FAILURES, AssertionError) as error:
        return Verdict(kernel, False, False, _why(kernel, error))
    return Verdict(kernel, True, frugal, reason)


def _inputs(
    queries: int, keys: int, device: torch.device, dtype: torch.dtype, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(head_size)
    query, key, value = (
        torch.randn(1, 2, length, head_size, generator=source).to(device, dtype).requires_grad_()
        for length in (queries, keys, keys)
    )
    return query, key, value


def _compare(output: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> str:
    """What is wrong with a kernel's output and gradients, or an empty string."""
    limit = _TOLERANCE.get(output.dtype, 5e-3)
    source = torch.Generator().manual_seed(1)
    outer = torch.randn(output.shape, generator=source).to(output.device, output.dtype)
    found = torch.autograd.grad(output, inputs, outer)
    exact_inputs = [t.detach().cpu().double().requires_grad_() for t in inputs]
    query, key, value = exact_inputs
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    exact = scores.softmax(dim=-1) @ value
    expected = torch.autograd.grad(exact, exact_inputs, outer.cpu().double())
    names = ("output", "query's gradient", "key's gradient", "value's gradient")
    for name, ours, theirs in zip(
        names, (output, *found), (exact.detach(), *expected), strict=True
    ):
        got = ours.detach().cpu().double()
        error = float((got - theirs).norm() / theirs.norm())
        if not error < limit:  # also where it is NaN
            return f"its {name} is wrong (relative error {error:.2g})"
    return ""


def _why(kernel: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{kernel} is not installed"
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return first[0][:200]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
