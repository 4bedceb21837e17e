"""Whether a model that was read is whole: configurations, shapes, types and numbers.

Everything that reads a base passes here before anything is built, computed or written. Shapes are
compared with those of an empty network made from the configuration (on the meta device, which
holds no data), so what fits here fits the libraries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.stable_diffusion.build import shapes
from dreambooth_core.families.stable_diffusion.config_rules import (
    blocks_in,
    check_config,
    check_scheduler,
)
from dreambooth_core.formats.checkpoints.networks import UNUSED, names_of
from dreambooth_core.formats.checkpoints.parts import CASTABLE, Component, ModelParts
from dreambooth_core.formats.checkpoints.rules import refuse

TITLES = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def check_model(parts: ModelParts, where: Path) -> None:
    """Refuses a model whose parts are damaged or do not belong together.

    No weight's values are read: :func:`check_values` does that.

    Raises:
        UserError: names the file and the key or tensor.
    """
    for name, component in parts.components.items():
        check_component(name, component, where / name if where.is_dir() else where)
    scheduler = where / "scheduler" / "scheduler_config.json"
    check_scheduler(parts.scheduler, scheduler if scheduler.is_file() else where)
    refuse(_strangers(parts), where)


def check_component(name: str, component: Component, where: Path) -> None:
    """Refuses a network whose configuration cannot be, or whose weights are not of it.

    Raises:
        UserError: names the key or the tensor.
    """
    config = where / "config.json" if where.is_dir() else where
    check_config(name, component.config, config)
    tensors = component.tensors
    for key, tensor in tensors.items():
        if tensor.dtype not in CASTABLE and not key.endswith("position_ids"):
            raise Unsupported(
                f"the {TITLES[name]}'s weight {key[:80]} is stored as "
                f"{str(tensor.dtype).removeprefix('torch.')}; weights must be fp32, fp16, bf16 or "
                "fp64",
                where=where,
                do="Get the model in one of these",
            )
    if blocks_in(name, component.config) > len(tensors):
        what = "configuration asks for more blocks than there are weights"
        raise UserError(f"the {TITLES[name]}'s {what}", where=config)
    wanted = shapes(name, component.config, config)
    refuse(_misfits(f"the {TITLES[name]}", wanted, names_of(wanted, tensors)), where)


def _misfits(
    title: str, wanted: Mapping[str, tuple[int, ...]], there: Mapping[str, Tensor]
) -> Iterator[str]:
    for key, shape in wanted.items():
        if key.endswith("position_ids"):
            continue  # counted anew
        if key not in there:
            yield f"{title}'s weight {key} is missing"
        elif tuple(there[key].shape) != shape:
            yield (
                f"{title}'s weight {key} has the shape {list(there[key].shape)}, "
                f"and by its configuration {list(shape)}"
            )
    for strange in (key for key in there if key not in wanted and not key.endswith(UNUSED)):
        yield f"{title} has a weight {strange[:80]!r}, which its configuration has no place for"


def check_values(
    parts: ModelParts,
    where: Path,
    dtype: torch.dtype | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> None:
    """Refuses a model with NaN or infinity in it, or with numbers too large for ``dtype``.

    One pass over all weights, as fast as memory or disk give them.

    Args:
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


def _strangers(parts: ModelParts) -> Iterator[str]:
    """Signs of parts of two models: widths that meet must be equal."""
    configs = {name: component.config for name, component in parts.components.items()}
    unet, different = configs["unet"], "the parts are of different models: "
    added = unet.get("addition_embed_type") == "text_time"
    if added != parts.family.startswith("sdxl"):
        what = "takes" if added else "does not take"
        yield (
            f"the text encoders are of another model: the UNet {what} sizes, as in "
            "Stable Diffusion XL"
        )
    texts = [config for name, config in configs.items() if name.startswith("text_encoder")]
    width = sum(config["hidden_size"] for config in texts)
    if unet["cross_attention_dim"] != width:
        yield (
            f"{different}the UNet takes text {unet['cross_attention_dim']} wide "
            f"(cross_attention_dim), and the text encoders make {width}"
        )
    if added:
        total = unet["projection_class_embeddings_input_dim"]
        numbers = unet["addition_time_embed_dim"]
        pooled = int(parts.components["text_encoder_2"].tensors["text_projection.weight"].shape[0])
        if total - pooled not in (5 * numbers, 6 * numbers):
            yield (
                f"{different}the UNet's added conditions ({total} wide) do not fit the text "
                f"({pooled} wide)"
            )
    if "vae" in configs:
        latent, out = configs["vae"].get("latent_channels", 4), unet.get("out_channels", 4)
        if latent != out:
            yield f"{different}the VAE has {latent} latent channels, the UNet {out}"
        if unet.get("in_channels", 4) < latent:
            yield (
                f"in_channels of the UNet is {unet['in_channels']}, fewer than the VAE's {latent}"
            )
