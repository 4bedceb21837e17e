"""Runs of real models' sizes with random weights, without a file of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.families import reduced_base
from helpers.flow_bases import WRITERS
from helpers.tiny import tiny_sd1

from benchmarks.models import in_size
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.trainer import decide as decides
from dreambooth_core.trainer import train as trains

SMALL: dict[str, Callable[[Path], Path]] = {
    "SD 1.5": tiny_sd1,
    "SDXL": lambda folder: reduced_base("sdxl", folder, slim=True),
    "Z-Image": WRITERS["z_image"],
    "Flux.2 Klein 4B": WRITERS["flux2_klein"],
    "Flux.1 dev": WRITERS["flux"],
    "Qwen-Image": WRITERS["qwen_image"],
}
"""What writes a tiny base of a model's family, whose tokenizers and scheduler serve a large one."""


@contextmanager
def grown(configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype) -> Iterator[None]:
    """Inside, a run's base has networks of ``configs`` with random weights in ``dtype``."""

    def load(options: BaseOptions, *, weights: bool = True, **arguments: Any) -> Components:
        small = load_base(options, weights=weights, **arguments)
        return in_size(small, configs, dtype if weights else None)

    with (
        mock.patch.object(trains, "load_base", load),
        mock.patch.object(decides, "load_base", load),
    ):
        yield
