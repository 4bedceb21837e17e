"""Reduced bases of every kind in diffusers folders, and which of them a test needs."""

from __future__ import annotations

from pathlib import Path

from helpers.reduced_models import reduced_parts

from dreambooth_core.families.stable_diffusion.folder import write_folder

KINDS: dict[str, tuple[str, int, str]] = {
    "sd1": ("sd1", 4, "epsilon"),
    "sd2": ("sd2", 4, "epsilon"),
    "sd2-v": ("sd2", 4, "v_prediction"),
    "sdxl": ("sdxl", 4, "epsilon"),
    "sd1-inpainting": ("sd1", 9, "epsilon"),
    "sd2-inpainting": ("sd2", 9, "epsilon"),
    "sdxl-inpainting": ("sdxl", 9, "epsilon"),
}
"""Family, input channels of the UNet and prediction type."""


def reduced_base(kind: str, folder: Path, *, slim: bool = False) -> Path:
    """Writes the reduced random model of a kind; ``slim``: with as few blocks as can be."""
    family, channels, prediction = KINDS[kind]
    parts = reduced_parts(family, in_channels=channels, prediction_type=prediction, slim=slim)
    write_folder(parts, folder)
    return folder
