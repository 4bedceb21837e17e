"""Reads a model whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.formats.checkpoints.folder import read_folder
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.checkpoints.single_read import read_single_file


def read_model(
    path: str | Path,
    *,
    config_file: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    variant: str | None = None,
    need_vae: bool = True,
) -> ModelParts:
    """Reads a single file or a diffusers folder; see the two readers for the arguments.

    Raises:
        UserError: as :func:`read_single_file` and :func:`read_folder`.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path, variant=variant, prediction_type=prediction_type)
    return read_single_file(
        path,
        config_file=config_file,
        prediction_type=prediction_type,
        ema=ema,
        need_vae=need_vae,
    )
