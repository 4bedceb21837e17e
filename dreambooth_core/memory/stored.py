"""In what precision a base lies in its files, told by their headers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import read_header
from dreambooth_core.memory.needs import locate_base
from dreambooth_core.options import TrainConfig

DENOISERS = ("transformer", "unet")
"""Where a folder in diffusers' layout has its denoiser."""

FP8 = "F8_"
"""How safetensors' names of 8-bit floats begin."""


def is_in_fp8(config: TrainConfig) -> bool:
    """Whether most numbers of the base's denoiser, or of the one file that it lies in, are 8-bit
    floats. False too where there is nothing to read or nothing that can be."""
    eight = every = 0
    try:
        for file in _files(locate_base(config)):
            for tensor in read_header(file).tensors.values():
                numbers = math.prod(tensor.shape)
                every += numbers
                eight += numbers if tensor.dtype.startswith(FP8) else 0
    except (UserError, OSError):  # whoever loads it says so
        return False
    return 2 * eight > every


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for name in DENOISERS if path.is_dir() else ():
        yield from sorted((path / name).glob("*.safetensors"))
