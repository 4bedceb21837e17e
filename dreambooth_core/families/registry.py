"""All families, and which of them a model belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.base import Family
from dreambooth_core.families.sd import StableDiffusion1, StableDiffusion2
from dreambooth_core.families.sdxl import StableDiffusionXL

FAMILIES: tuple[Family, ...] = (StableDiffusionXL(), StableDiffusion2(), StableDiffusion1())


def family_of(
    unet_config: dict[str, Any], text_configs: Sequence[dict[str, Any]], where: str
) -> Family:
    """The family of a model with these configurations.

    Raises:
        Unsupported: no family fits; says what the model looks like.
    """
    for family in FAMILIES:
        if family.matches(unet_config, text_configs):
            return family
    raise Unsupported(
        f"no known family: a UNet with {unet_config.get('in_channels')} input channels, "
        f"{len(text_configs)} text encoder(s) and "
        f"addition_embed_type={unet_config.get('addition_embed_type')!r}",
        where=where,
        do=f"Known: {', '.join(family.label for family in FAMILIES)}.",
    )
