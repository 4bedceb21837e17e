"""Lets A1111 load models with any widths, such as pocket.

Its configuration files give a UNet's widths as whole multiples of the first. Beside a model that
has others, the engine writes one that names ``dreambooth_reduced.UNetModel``, which this makes
importable: latent diffusion's own class, with multiples such as 1.5.
"""

from __future__ import annotations

import sys
import types
from typing import Any

MODULE = "dreambooth_reduced"


class Multiple(float):
    """A factor whose product with a width is a width: a whole number."""

    def __mul__(self, width: float) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def offer() -> None:
    """Makes the module importable; latent diffusion is imported when a model asks for it."""
    module = types.ModuleType(MODULE, __doc__)
    module.__getattr__ = _find  # type: ignore[method-assign]
    sys.modules.setdefault(MODULE, module)


def _find(name: str) -> Any:
    if name != "UNetModel":
        raise AttributeError(name)
    from ldm.modules.diffusionmodules.openaimodel import (
        UNetModel,
    )

    def any_widths(*args: Any, channel_mult: Any, **options: Any) -> Any:
        return UNetModel(*args, channel_mult=[Multiple(m) for m in channel_mult], **options)

    return any_widths
