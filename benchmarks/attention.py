"""Memory and time of attention kernels, forward and backward, each in a process of its own.

    python benchmarks/attention.py                       # 16384 tokens, one head of 40
    python benchmarks/attention.py --shape 4096,8,40 --kernels sdpa chunked

"extra" is the peak of the resident memory (on CUDA: of the allocator) over what it was with
the inputs in place. CPU seconds are of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ("chunked", "sdpa", "math")


def measure(kernel: str, sequence: int, heads: int, size: int, dtype: str, device: str) -> None:
    """Runs one kernel and prints a JSON line: extra peak MB, CPU seconds, relative error."""
    import torch

    from dreambooth_core.attention.probe import IMPLEMENTATIONS
    from dreambooth_core.memory.measure import peak_memory

    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    made = [torch.randn(1, heads, sequence, size, dtype=kind, device=device) for _ in range(3)]
    inputs = [tensor.requires_grad_() for tensor in made]
    outer = torch.randn(1, heads, sequence, size, dtype=kind, device=device)
    run = _math if kernel == "math" else IMPLEMENTATIONS[kernel]
    # A small call first: what libraries load once is no one kernel's cost.
    small = [t[:, :, :64].detach().requires_grad_() for t in inputs]
    torch.autograd.grad(run(*small, None), small, outer[:, :, :64])
    before = time.process_time()
    with peak_memory(torch.device(device)) as peak:
        result = run(*inputs, None)
        torch.autograd.grad(result, inputs, outer)
    seconds = time.process_time() - before
    sys.stdout.write(json.dumps({"mb": peak.extra / 1e6, "seconds": seconds}) + "\n")


def _math(query, key, value, mask):  # type: ignore[no-untyped-def]
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="16384,1,40", help="sequence,heads,head size")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sequence, heads, size = (int(part) for part in args.shape.split(","))
    if args.one:
        measure(args.one, sequence, heads, size, args.dtype, args.device)
        return 0
    print(f"sequence {sequence}, heads {heads}, head size {size}, {args.dtype}, {args.device}")
    print(f"{'kernel':10} {'extra MB':>10} {'CPU s':>8}")
    for kernel in args.kernels:
        found = _in_process(kernel, args)
        print(f"{kernel:10} {found['mb']:10.0f} {found['seconds']:8.2f}")
    return 0


def _in_process(kernel: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", kernel, "--shape", args.shape]
    command += ["--dtype", args.dtype, "--device", args.device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
