"""The diffusers configuration of a UNet from its plan, and what shapes alone cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.stable_diffusion.unet import Level, UNetPlan
from dreambooth_core.formats.checkpoints.rules import each

HEAD_WIDTH = 64
"""Channels of an attention head in SD2 and SDXL."""
SD1_HEADS = 8
"""Attention heads at every level of SD1."""
TIME_ID_COUNT = 6
"""Numbers that SDXL takes besides text: original size, crop and target size (two each)."""


def heads_from_config(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Attention heads at each level.

    In diffusers' UNet ``attention_head_dim`` is, against its name, the number of heads, unless
    ``num_attention_heads`` is there too.
    """
    value = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    return tuple(int(n) for n in each(value, len(config["block_out_channels"])))


def default_heads(plan: UNetPlan, family: str) -> tuple[int, ...]:
    """Attention heads where nothing but the family says how many: 8, or one per 64 channels.

    Raises:
        UserError: the channels do not divide so; a reduced model needs its configuration.
    """
    if family == "sd1":
        return (SD1_HEADS,) * len(plan.levels)
    return heads_of_width(plan, HEAD_WIDTH)


def heads_of_width(plan: UNetPlan, width: int) -> tuple[int, ...]:
    """Attention heads of ``width`` channels each. Raises ``UserError`` where that leaves a rest."""
    for level in plan.levels:
        if plan.attends(level) and level.channels % width:
            raise UserError(
                f"the number of attention heads of this reduced model is not known "
                f"({level.channels} channels do not divide into heads of {width})",
                do="Give its yaml with --original_config_file",
            )
    return tuple(max(1, level.channels // width) for level in plan.levels)


def head_width(plan: UNetPlan, heads: tuple[int, ...]) -> int | None:
    """Channels per head where that is one number for all levels that attend, else ``None``."""
    widths = {
        level.channels / n
        for level, n in zip(plan.levels, heads, strict=True)
        if plan.attends(level)
    }
    return int(widths.pop()) if len(widths) == 1 else None


def config_from_plan(
    plan: UNetPlan,
    heads: tuple[int, ...],
    *,
    sample_size: int | None,
) -> dict[str, Any]:
    """A ``UNet2DConditionModel`` configuration.

    Args:
        heads: at each level.
        sample_size: edge of the latents; ``None`` where it is not known yet.

    Raises:
        Unsupported: diffusers has no configuration for this plan.
    """
    for level in plan.levels:
        if level.attends and not (all(level.down) and all(level.up)):
            raise Unsupported("a UNet level where only some resblocks have attention")
    blocks = [len(level.down) for level in plan.levels]
    down, up = _transformer_depths(plan)
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": [_type(level, "Down") for level in plan.levels],
        "mid_block_type": None if plan.middle is None else "UNetMidBlock2DCrossAttn",
        "up_block_types": [_type(level, "Up") for level in reversed(plan.levels)],
        "only_cross_attention": False,
        "block_out_channels": [level.channels for level in plan.levels],
        "layers_per_block": _short(blocks),
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-05,
        "cross_attention_dim": plan.context,
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": up,
        "attention_head_dim": _short(heads),
        "use_linear_projection": plan.linear,
        "upcast_attention": False,
        "addition_embed_type": None if plan.added is None else "text_time",
        "addition_time_embed_dim": None if plan.added is None else 256,
        "projection_class_embeddings_input_dim": plan.added,
    }


def set_time_width(config: dict[str, Any], pooled: int) -> None:
    """Derives how wide each of SDXL's six numbers is embedded, from the pooled text's width."""
    added = config.get("projection_class_embeddings_input_dim")
    if added is None:
        return
    numbers = TIME_ID_COUNT if (added - pooled) % TIME_ID_COUNT == 0 else TIME_ID_COUNT - 1
    width, rest = divmod(added - pooled, numbers)
    if rest or width <= 0:
        raise UserError(f"the UNet's added conditions ({added}) do not fit the text ({pooled})")
    config["addition_time_embed_dim"] = width


def _type(level: Level, way: str) -> str:
    return f"CrossAttn{way}Block2D" if level.attends else f"{way}Block2D"


def _transformer_depths(plan: UNetPlan) -> tuple[Any, Any]:
    """``transformer_layers_per_block`` and its reverse, as short as they can be said."""
    last = plan.levels[-1]
    down = [
        _short(level.down) if level.attends else (plan.middle or 1) if level is last else 1
        for level in plan.levels
    ]
    first = last.down[0] if last.attends else down[-1]
    if plan.middle is not None and first != plan.middle:
        raise Unsupported(f"a middle block of depth {plan.middle} after a level of depth {first}")
    both = list(zip(plan.levels, down, strict=True))
    uneven = any(isinstance(depth, list) for depth in down)
    if uneven or any(level.attends and _short(level.up) != depth for level, depth in both):
        return down, [_short(level.up) if level.attends else 1 for level in reversed(plan.levels)]
    used = {depth for level, depth in both if level.attends or level is last}
    return (used.pop() if len(used) == 1 else down), None


def _short(depths: Sequence[int]) -> Any:
    """One number where all are the same."""
    return depths[0] if len(set(depths)) == 1 else list(depths)
