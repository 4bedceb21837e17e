"""A short name for weights, so that what they made is never taken for what others made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_PIECE = 16384
"""Bytes that are summed up into one word."""
_SAMPLES = 4096


def fingerprint(*models: nn.Module | Mapping[str, Tensor], also: Iterable[str] = ()) -> str:
    """32 hexadecimal digits that differ where weights differ.

    Of every tensor: its name, shape and dtype, its bytes summed up as 64-bit words, 16 KiB at a
    time (exact, so the same on every machine, and changed by any change of one value), and 4096
    bytes spread over it. It reads as fast as the memory gives, where a hash of all bytes takes
    seconds for each gigabyte.

    Args:
        models: Modules or state dicts, in the order that matters.
        also: Anything else that what is made depends on, such as a clip skip.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in also:
        digest.update(f"{text}\0".encode())
    for model in models:
        state = model.state_dict() if isinstance(model, nn.Module) else model
        for name in sorted(state):
            value = state[name]
            if isinstance(value, Tensor):
                digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
                digest.update(_digest(value))
        digest.update(b"\1")
    return digest.hexdigest()


def _digest(value: Tensor) -> bytes:
    """The sums of the bits, piece by piece, and a sample of the values of one tensor."""
    if value.is_meta:
        raise ValueError("a tensor on the meta device has no values to tell it by")
    raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
    step = max(raw.numel() // _SAMPLES, 1) | 1
    if raw.numel() < _PIECE:
        every = _bytes(raw)  # a model has hundreds of these, each a call instead of ten
        return every + every[::step]
    if raw.storage_offset() % 8:
        # A part of a memory map can begin anywhere, and words must begin at a multiple of 8.
        raw = raw.clone()
    whole = raw.numel() // _PIECE * _PIECE
    words = raw[:whole].view(torch.int64).view(-1, _PIECE // 8)
    # Words are added modulo 2^64, in any order with the same result.
    return _bytes(words.sum(1)) + _bytes(raw[whole:]) + _bytes(raw[::step])


def _bytes(values: Tensor) -> bytes:
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
