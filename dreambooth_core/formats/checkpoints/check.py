"""Whether a model that was read is whole: configurations, shapes, types and numbers.

Everything that reads a base passes here before anything is built, computed or written. Shapes are
compared with those of an empty network made from the configuration (on the meta device, which
holds no data), so what fits here fits the libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.checkpoints.build import UNUSED, names_of, shapes
from dreambooth_core.formats.checkpoints.config_rules import (
    blocks_in,
    check_config,
    check_scheduler,
)
from dreambooth_core.formats.checkpoints.parts import CASTABLE, Component, ModelParts

TITLES = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def check_model(parts: ModelParts, where: Path) -> None:
    """Refuses a model whose parts are damaged or do not belong together.

    No weight's values are read: :func:`check_values` does that.

    Args:
        parts: what was read.
        where: the file or the diffusers folder that it was read from.

    Raises:
        UserError: names the file and the key or tensor.
    """
    for name, component in parts.components.items():
        check_component(name, component, where / name if where.is_dir() else where)
    scheduler = where / "scheduler" / "scheduler_config.json"
    check_scheduler(parts.scheduler, scheduler if scheduler.is_file() else where)
    _check_together(parts, where)


def check_component(name: str, component: Component, where: Path) -> None:
    """Refuses a network whose configuration cannot be, or whose weights are not of it.

    Raises:
        UserError: names the key or the tensor.
    """
    config = where / "config.json" if where.is_dir() else where
    check_config(name, component.config, config)
    tensors = component.tensors
    for key, tensor in tensors.items():
        _check_type(name, key, tensor, where)
    if blocks_in(name, component.config) > len(tensors):
        raise UserError(
            f"the {TITLES[name]}'s configuration asks for more blocks than there are weights",
            where=config,
        )
    wanted = shapes(name, component.config, config)
    there = names_of(wanted, tensors)
    for key, shape in wanted.items():
        if key.endswith("position_ids"):
            continue  # counted anew
        if key not in there:
            raise UserError(f"the {TITLES[name]}'s weight {key} is missing", where=where)
        if tuple(there[key].shape) != shape:
            raise UserError(
                f"the {TITLES[name]}'s weight {key} has the shape {list(there[key].shape)}, "
                f"and by its configuration {list(shape)}",
                where=where,
            )
    strange = next((k for k in there if k not in wanted and not k.endswith(UNUSED)), None)
    if strange is not None:
        raise UserError(
            f"the {TITLES[name]} has a weight {strange[:80]!r}, which its configuration has no "
            "place for",
            where=where,
        )


def check_values(
    parts: ModelParts,
    where: Path,
    dtype: torch.dtype | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuses a model with NaN or infinity in it, or with numbers too large for ``dtype``.

    One pass over all weights, as fast as memory or disk give them.

    Args:
        parts: the model.
        where: what it was read from.
        dtype: what it will be stored in; None for what it has.
        extras: tensors that no network uses and that are written too.

    Raises:
        UserError: names the file and the tensor.
    """
    for name, component in parts.components.items():
        place = where / name if where.is_dir() else where
        for key, tensor in component.tensors.items():
            check_finite(tensor, f"the {TITLES[name]}'s weight {key}", place, dtype)
    for key, tensor in (extras or {}).items():
        check_finite(tensor, f"the tensor {key}", where, dtype)


def check_finite(
    tensor: Tensor,
    name: str,
    where: str | Path | None,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuses a tensor with NaN or infinity, or whose numbers are infinite in ``dtype``.

    Raises:
        UserError: says which.
    """
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return
    low, high = torch.aminmax(tensor.detach())  # both are NaN if one value is
    if not bool(low.isfinite() & high.isfinite()):
        raise UserError(f"{name} holds NaN or infinity", where=where, do="Get an undamaged copy")
    if dtype is not None and not bool(low.to(dtype).isfinite() & high.to(dtype).isfinite()):
        largest = max(abs(float(low)), abs(float(high)))
        raise UserError(
            f"{name} has numbers as large as {largest:.3g}, infinite in "
            f"{str(dtype).removeprefix('torch.')}",
            where=where,
            do="Choose another precision",
        )


def _check_type(name: str, key: str, tensor: Tensor, where: Path) -> None:
    if tensor.dtype in CASTABLE or key.endswith("position_ids"):
        return
    raise Unsupported(
        f"the {TITLES[name]}'s weight {key[:80]} is stored as "
        f"{str(tensor.dtype).removeprefix('torch.')}; weights must be fp32, fp16, bf16 or fp64",
        where=where,
        do="Get the model in one of these",
    )


def _check_together(parts: ModelParts, where: Path) -> None:
    """Parts of two models: widths that meet must be equal."""
    configs = {name: component.config for name, component in parts.components.items()}
    unet = configs["unet"]
    xl = parts.family.startswith("sdxl")
    added = unet.get("addition_embed_type") == "text_time"
    if added != xl:
        what = "takes" if added else "does not take"
        raise UserError(
            f"the text encoders are of another model: the UNet {what} sizes, as in "
            "Stable Diffusion XL",
            where=where,
        )
    texts = [config for name, config in configs.items() if name.startswith("text_encoder")]
    width = sum(config["hidden_size"] for config in texts)
    if unet["cross_attention_dim"] != width:
        raise UserError(
            f"the parts are of different models: the UNet takes text {unet['cross_attention_dim']} "
            f"wide (cross_attention_dim), and the text encoders make {width}",
            where=where,
        )
    if added:
        projection = parts.components["text_encoder_2"].tensors["text_projection.weight"]
        _check_added(unet, int(projection.shape[0]), where)
    if "vae" in configs:
        _check_latents(unet, configs["vae"], where)


def _check_added(unet: dict[str, Any], pooled: int, where: Path) -> None:
    rest = unet["projection_class_embeddings_input_dim"] - pooled
    if rest not in (count * unet["addition_time_embed_dim"] for count in (5, 6)):
        raise UserError(
            "the parts are of different models: the UNet's added conditions "
            f"({unet['projection_class_embeddings_input_dim']} wide) do not fit the text "
            f"({pooled} wide)",
            where=where,
        )


def _check_latents(unet: dict[str, Any], vae: dict[str, Any], where: Path) -> None:
    latent, out = vae.get("latent_channels", 4), unet.get("out_channels", 4)
    if latent != out:
        raise UserError(
            f"the parts are of different models: the VAE has {latent} latent channels, "
            f"the UNet {out}",
            where=where,
        )
    if unet.get("in_channels", 4) < latent:
        raise UserError(
            f"in_channels of the UNet is {unet['in_channels']}, fewer than the VAE's {latent}",
            where=where,
        )
