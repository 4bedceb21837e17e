"""Tensors of a single file that no network uses: which of them to keep."""

from __future__ import annotations

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints import single_layout
from dreambooth_core.formats.checkpoints.parts import ModelParts

EXTRAS = ("text", "all", "none")
"""``text``: the text encoder's unused weights; ``all``: also moving averages, schedules and
whatever else there was; ``none``."""


def kept(parts: ModelParts, extras: str) -> dict[str, torch.Tensor]:
    """The unused tensors to keep, in the single file's names.

    Raises:
        UserError: ``extras`` is not one of :data:`EXTRAS`.
    """
    if extras not in EXTRAS:
        raise UserError(f"extras is {extras!r}", do=f"Choose one of {', '.join(EXTRAS)}")
    if extras == "none":
        return {}
    if extras == "all":
        return parts.extras
    prefixes = tuple(single_layout.PREFIXES[parts.family].values())
    return {k: v for k, v in parts.extras.items() if k.startswith(prefixes)}
