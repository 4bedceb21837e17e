"""Random numbers that depend on a key alone, never on the order in which they are drawn.

The noise of a training sample is keyed by what it is for, the run's seed, the step and the
sample's slot in the global batch. So a resumed run, another batch layout or a second process
draws exactly what one uninterrupted process would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed from a key, the same on every machine and Python version.

    Each part is hashed with its type, so that ``1`` and ``"1"`` differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        digest.update(f"{type(part).__name__}:{part}\0".encode())
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*key: Key, device: str = "cpu") -> torch.Generator:
    """A torch generator seeded by ``key``.

    Draw on the CPU and move the result: a CPU and a GPU generator give different numbers for
    one seed, and results should not depend on the device.
    """
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(*key))


def seed_globally(*key: Key, device: str = "cpu") -> None:
    """Seeds torch's global generators by ``key``, for what draws from no other, as dropout does. On
    the CPU its own alone: ``torch.manual_seed`` also notes a call for each other kind of device
    that is not in use, with the stack that led to it."""
    import torch

    seed = seed_of(*key)
    if device == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def uniform(*key: Key) -> float:
    """A number in [0, 1) that depends on ``key`` alone."""
    return (seed_of(*key) >> 10) / float(1 << 53)


def permutation(n: int, *key: Key) -> list[int]:
    """The numbers 0 … n-1 in an order that depends on ``key`` alone."""
    return sorted(range(n), key=lambda i: seed_of(*key, i))
