"""The parts of a Stable Diffusion model: what it must have, and what they tell of it."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.parts import ModelParts

TEXT_ENCODERS: dict[str, dict[str, str]] = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl_refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}
"""The text encoders of each family by diffusers' names, and where the single file has them."""

OPENCLIP = {("sd2", "text_encoder"), ("sdxl", "text_encoder_2"), ("sdxl_refiner", "text_encoder_2")}
"""Those that are OpenCLIP's: in names of its own in the single file, and padded with 0."""


def is_inpainting(parts: ModelParts) -> bool:
    """Whether the UNet also takes a mask and the masked image (9 channels in)."""
    unet = parts.components.get("unet")
    return unet is not None and unet.config.get("in_channels") == 9


def resolution_of(parts: ModelParts) -> int:
    """The image size in pixels that the model was made for."""
    size = parts.components["unet"].config.get("sample_size") or 64
    levels = len(parts.components["vae"].config.get("block_out_channels", (1, 2, 4, 4)))
    edge = size if isinstance(size, int) else max(size)
    return int(edge * 2 ** (levels - 1))


def check_complete(parts: ModelParts, where: str | Path) -> None:
    """Raises ``UserError`` when a network that the family needs is missing."""
    for name in ("unet", "vae", *TEXT_ENCODERS[parts.family]):
        if name not in parts.components:
            advice = "Give one with --vae" if name == "vae" else None
            what = {"vae": "VAE", "unet": "UNet"}.get(name, name.replace("_", " "))
            raise UserError(f"there is no {what} in this model", where=where, do=advice)
