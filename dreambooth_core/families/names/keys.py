"""Which family's denoiser a file holds, by its keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreambooth_core.families.names import NAMES, Layer, LayerNames, recognise

Shapes = Mapping[str, Sequence[int]]

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "transformer.")
"""What stands before a denoiser's layers in files of hosts, trainers and diffusers."""
OTHERS = ("vae.", "first_stage_model.", "text_encoders.", "conditioner.", "cond_stage_model.")
"""Where the other parts of a whole checkpoint begin."""
_UNET = ("input_blocks.", "down_blocks.")


def family_of(shapes: Shapes) -> tuple[LayerNames, dict[str, Layer]] | None:
    """The family of a denoiser, and its layers by the beginnings of the file's keys; ``None``
    for another thing, and for a UNet."""
    if any(part in key for key in shapes for part in _UNET):
        return None
    prefix = prefix_of(shapes)
    sizes = sizes_of(shapes, prefix)
    found = recognise(tuple(NAMES.working()), sizes)
    if found is None or len(found[1]) < len(sizes) / 2:
        return None
    return found[0], {f"{prefix}{name}": layer for name, layer in found[1].items()}


def prefix_of(shapes: Shapes) -> str:
    return next((p for p in PREFIXES if any(key.startswith(p) for key in shapes)), "")


def sizes_of(shapes: Shapes, prefix: str) -> dict[str, tuple[int | None, int | None]]:
    return {
        key.removesuffix(".weight")[len(prefix) :]: (int(shape[0]), int(shape[1]))
        for key, shape in shapes.items()
        if key.startswith(prefix) and key.endswith(".weight") and len(shape) > 1
        if not key.startswith(OTHERS)
    }
