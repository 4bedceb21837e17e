"""The names of every family's layers, one file a family. Standard library only."""

from __future__ import annotations

from dreambooth_core.families.names import (
    anima,
    chroma,
    flux,
    flux2,
    hidream,
    ideogram4,
    krea2,
    lumina2,
    qwen_image,
    sana,
    sd3,
    z_image,
)
from dreambooth_core.families.names.record import DIFFUSERS as DIFFUSERS
from dreambooth_core.families.names.record import HOSTS as HOSTS
from dreambooth_core.families.names.record import NATIVE as NATIVE
from dreambooth_core.families.names.record import FamilyNames as FamilyNames
from dreambooth_core.families.names.record import Fused as Fused
from dreambooth_core.families.names.record import Layer as Layer
from dreambooth_core.families.names.record import LayerNames as LayerNames
from dreambooth_core.families.names.record import Sizes as Sizes
from dreambooth_core.families.names.record import recognise as recognise
from dreambooth_core.families.names.record import variant_of as variant_of
from dreambooth_core.families.names.stable_diffusion import LABELS as LABELS
from dreambooth_core.families.names.stable_diffusion import STABLE_DIFFUSION as STABLE_DIFFUSION
from dreambooth_core.families.names.stable_diffusion import UNetNames as UNetNames
from dreambooth_core.registry import Registry

NAMES: Registry[LayerNames] = Registry(
    "table of layer names", where="family", group="dreambooth.names"
)
NAMES.add(
    flux.NAMES,
    chroma.NAMES,
    flux2.NAMES,
    z_image.NAMES,
    qwen_image.NAMES,
    sd3.NAMES,
    krea2.NAMES,
    anima.NAMES,
    lumina2.NAMES,
    sana.NAMES,
    hidream.NAMES,
    ideogram4.NAMES,
)


def names_of(family: str | None) -> LayerNames | None:
    """A family's names; ``None`` for Stable Diffusion 1, 2 and XL, and for what is unknown."""
    return next((names for names in NAMES.working() if names.family == family), None)


def record_of(family: str | None) -> FamilyNames | None:
    """What is known of any family's adapters; ``None`` for what is unknown."""
    stable = next((names for names in STABLE_DIFFUSION if names.family == family), None)
    return stable or names_of(family)


def label_of(family: str | None) -> str:
    """What a family is called, ``""`` where it is not known."""
    names = record_of(family)
    return names.label if names is not None else LABELS.get(family or "", "")
