"""Sending a tensor to the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; a CUDA device goes on with its work meanwhile.

    What lies in ordinary memory is copied aside before the call returns, so the tensor may be
    changed at once. Other devices do not promise that, and are waited for.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
