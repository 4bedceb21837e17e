"""Reads a model whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

import torch

from dreambooth_core.formats.checkpoints.check import check_model, check_values
from dreambooth_core.formats.checkpoints.folder import read_folder
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.checkpoints.single_read import read_single_file
from dreambooth_core.formats.folders import is_folder


def read_model(
    path: str | Path,
    *,
    config_file: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    variant: str | None = None,
    need_vae: bool = True,
    values: bool = True,
    dtype: torch.dtype | None = None,
) -> ModelParts:
    """Reads a single file or a diffusers folder, and refuses one that is not whole.

    Args:
        path: the file or folder.
        config_file: see :func:`read_single_file`; ``prediction_type`` and ``ema`` likewise.
        prediction_type: overrides what the model says.
        ema: take the moving average of the UNet's weights.
        variant: see :func:`read_folder`.
        need_vae: whether a file without a VAE is an error.
        values: also look at every number: none may be NaN or infinite.
        dtype: what the weights will be stored in; numbers too large for it are refused as well.

    Raises:
        UserError: as :func:`read_single_file` and :func:`read_folder`, and whatever
            :func:`check_model` and :func:`check_values` find.
    """
    path = Path(path)
    if is_folder(path):
        parts = read_folder(path, variant=variant, prediction_type=prediction_type)
    else:
        parts = read_single_file(
            path,
            config_file=config_file,
            prediction_type=prediction_type,
            ema=ema,
            need_vae=need_vae,
        )
    check_model(parts, path)
    if values:
        check_values(parts, path, dtype)
    return parts
