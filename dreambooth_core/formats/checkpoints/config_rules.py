"""Every value that the configuration of a network or a scheduler may have, and what must agree.

The ranges are far beyond any real model and far below what could fill a memory: a folder that
asks for a billion channels is refused here, by arithmetic, before a library sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.parts import PREDICTIONS
from dreambooth_core.formats.checkpoints.rules import (
    FLAG,
    NOTHING,
    Rule,
    check,
    listed,
    number,
    one_of,
    whole,
)

LEVELS = 8
"""Resolutions of a UNet or an autoencoder; real ones have three or four."""
_WIDTH = whole(1, 16384)
_EDGE = whole(1, 4096)
_BLOCKS = whole(1, 16)
_DEPTH = whole(0, 64)
_HEADS = whole(1, 1024)
_SMALL = number(1e-12, 0.1)
_SHARE = number(0, 1)
_ACTIVATIONS = one_of("silu", "swish", "mish", "gelu", "relu")
_DOWN = one_of("CrossAttnDownBlock2D", "DownBlock2D")
_UP = one_of("CrossAttnUpBlock2D", "UpBlock2D")
_DEPTHS = _DEPTH | listed(_DEPTH | listed(_DEPTH, 17), LEVELS)

UNET: dict[str, Rule] = {
    "_class_name": NOTHING | one_of("UNet2DConditionModel"),
    "sample_size": NOTHING | _EDGE | listed(_EDGE, 2, 2),
    "in_channels": whole(1, 64),
    "out_channels": whole(1, 64),
    "center_input_sample": FLAG,
    "flip_sin_to_cos": FLAG,
    "freq_shift": number(0, 1000),
    "block_out_channels": listed(_WIDTH, LEVELS),
    "down_block_types": listed(_DOWN, LEVELS),
    "up_block_types": listed(_UP, LEVELS),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", None),
    "only_cross_attention": one_of(False),
    "mid_block_only_cross_attention": one_of(False, None),
    "dual_cross_attention": one_of(False),
    "layers_per_block": _BLOCKS | listed(_BLOCKS, LEVELS),
    "transformer_layers_per_block": _DEPTHS,
    "reverse_transformer_layers_per_block": NOTHING | _DEPTHS,
    "attention_head_dim": _HEADS | listed(_HEADS, LEVELS),
    "num_attention_heads": NOTHING | _HEADS | listed(_HEADS, LEVELS),
    "cross_attention_dim": _WIDTH,
    "downsample_padding": whole(0, 8),
    "mid_block_scale_factor": number(1e-3, 1e3),
    "dropout": number(0, 0.999),
    "act_fn": _ACTIVATIONS,
    "norm_num_groups": _HEADS,
    "norm_eps": _SMALL,
    "use_linear_projection": FLAG,
    "upcast_attention": FLAG | NOTHING,
    "addition_embed_type": one_of(None, "text_time"),
    "addition_embed_type_num_heads": _HEADS,
    "addition_time_embed_dim": NOTHING | _WIDTH,
    "projection_class_embeddings_input_dim": NOTHING | whole(1, 65536),
    "class_embed_type": NOTHING,
    "num_class_embeds": NOTHING,
    "class_embeddings_concat": one_of(False),
    "encoder_hid_dim": NOTHING,
    "encoder_hid_dim_type": NOTHING,
    "conv_in_kernel": one_of(3),
    "conv_out_kernel": one_of(3),
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": NOTHING,
    "time_embedding_act_fn": NOTHING,
    "timestep_post_act": NOTHING,
    "time_cond_proj_dim": NOTHING | _WIDTH,
    "resnet_time_scale_shift": one_of("default"),
    "resnet_skip_time_act": FLAG,
    "resnet_out_scale_factor": number(1e-3, 1e3),
    "attention_type": one_of("default"),
    "cross_attention_norm": NOTHING,
}
VAE: dict[str, Rule] = {
    "_class_name": NOTHING | one_of("AutoencoderKL"),
    "in_channels": one_of(3),
    "out_channels": one_of(3),
    "block_out_channels": listed(_WIDTH, LEVELS),
    "down_block_types": listed(one_of("DownEncoderBlock2D"), LEVELS),
    "up_block_types": listed(one_of("UpDecoderBlock2D"), LEVELS),
    "layers_per_block": whole(0, 16),
    "act_fn": _ACTIVATIONS,
    "latent_channels": whole(1, 64),
    "norm_num_groups": _HEADS,
    "sample_size": _EDGE | listed(_EDGE, 2, 2),
    "scaling_factor": number(1e-4, 1e4),
    "shift_factor": NOTHING | number(-1e4, 1e4),
    "latents_mean": NOTHING | listed(number(-1e4, 1e4), 64),
    "latents_std": NOTHING | listed(number(1e-6, 1e4), 64),
    "force_upcast": FLAG,
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": one_of(True),
}
TEXT: dict[str, Rule] = {
    "vocab_size": whole(1, 1_000_000),
    "hidden_size": _WIDTH,
    "intermediate_size": whole(1, 65536),
    "projection_dim": NOTHING | _WIDTH,
    "num_hidden_layers": whole(1, 128),
    "num_attention_heads": _HEADS,
    "max_position_embeddings": whole(3, 8192),
    "hidden_act": one_of("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"),
    "layer_norm_eps": _SMALL,
    "attention_dropout": _SHARE,
    "dropout": _SHARE,
    "initializer_factor": number(0, 1e3),
    "initializer_range": number(0, 1e3),
    "bos_token_id": NOTHING | whole(0, 1_000_000),
    "eos_token_id": NOTHING | whole(0, 1_000_000),
    "pad_token_id": NOTHING | whole(0, 1_000_000),
}
_BETA = number(1e-9, 0.999)
SCHEDULER: dict[str, Rule] = {
    "num_train_timesteps": whole(1, 100_000),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": one_of(*PREDICTIONS),
    "trained_betas": NOTHING | listed(_BETA, 100_000),
    "timestep_spacing": one_of("leading", "linspace", "trailing"),
    "steps_offset": whole(0, 1000),
    "rescale_betas_zero_snr": FLAG,
    "set_alpha_to_one": FLAG,
    "skip_prk_steps": FLAG,
    "clip_sample": FLAG,
    "clip_sample_range": number(1e-3, 1e4),
    "thresholding": FLAG,
    "dynamic_thresholding_ratio": _SHARE,
    "sample_max_value": number(1e-3, 1e4),
    "interpolation_type": one_of("linear", "log_linear"),
    "timestep_type": one_of("discrete", "continuous"),
    "final_sigmas_type": one_of("zero", "sigma_min"),
    "use_karras_sigmas": FLAG | NOTHING,
    "use_exponential_sigmas": FLAG | NOTHING,
    "use_beta_sigmas": FLAG | NOTHING,
    "use_flow_sigmas": FLAG | NOTHING,
    "flow_shift": NOTHING | number(0.01, 100.0),
    "sigma_min": NOTHING | number(0, 1e6),
    "sigma_max": NOTHING | number(0, 1e6),
    "solver_order": whole(1, 3),
    "solver_type": one_of("midpoint", "heun", "bh1", "bh2", "logrho"),
    "solver_p": NOTHING,
    "lower_order_final": FLAG,
    "euler_at_final": FLAG,
    "predict_x0": FLAG,
    "disable_corrector": listed(whole(0, 1000), 1000, 0),
    "lambda_min_clipped": number(-1e6, 1e6) | one_of(float("-inf")),
    "variance_type": NOTHING | one_of("fixed_small", "fixed_small_log", "fixed_large"),
}

_RULES = {"unet": UNET, "vae": VAE}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "unet": ("block_out_channels", "down_block_types", "up_block_types", "cross_attention_dim"),
    "vae": ("block_out_channels", "down_block_types", "up_block_types"),
}
_REQUIRED_TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def check_config(name: str, config: Mapping[str, Any], where: str | Path | None) -> None:
    """Refuses the configuration of a network that none can have.

    Args:
        name: ``unet``, ``vae``, ``text_encoder`` or ``text_encoder_2``.
        config: as diffusers or transformers keep it.
        where: for the message.

    Raises:
        UserError: a value out of its range or of another type, or values that contradict.
    """
    check(config, _RULES.get(name, TEXT), where, required=_REQUIRED.get(name, _REQUIRED_TEXT))
    if name in _RULES:
        _check_levels(name, config, where)
    else:
        _check_text(config, where)


def check_scheduler(config: Mapping[str, Any], where: str | Path | None) -> None:
    """Refuses the configuration of a scheduler that no noise schedule follows from.

    Raises:
        UserError: names the key.
    """
    check(config, SCHEDULER, where)
    kind = config.get("_class_name")
    if not isinstance(kind, str) or not kind.endswith("Scheduler") or kind.startswith("Flow"):
        raise UserError(
            f"_class_name is {kind!r}, which is not a scheduler of Stable Diffusion", where=where
        )
    start, end = config.get("beta_start", 0.0), config.get("beta_end", 1.0)
    if start > end:
        raise UserError(f"beta_start is {start}, more than beta_end, {end}", where=where)
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        raise UserError(f"trained_betas has {len(betas)} values for {steps} timesteps", where=where)


def blocks_in(name: str, config: Mapping[str, Any]) -> int:
    """How many resblocks and transformer blocks a checked configuration asks for, about.

    Far fewer than tensors in any file that fits it: a cheap look before anything is built.
    """
    if name not in _RULES:
        return int(config["num_hidden_layers"])
    count = len(config["block_out_channels"])
    layers = _each(config.get("layers_per_block", 2), count)
    if name == "vae":
        return 2 * sum(layers)
    depths = _each(config.get("transformer_layers_per_block", 1), count)
    reverse = config.get("reverse_transformer_layers_per_block")
    up_depths = _each(0 if reverse is None else reverse, count)
    found = 0
    for kinds, deeps, more in (
        (config["down_block_types"], depths, 0),
        (config["up_block_types"], up_depths, 1),
    ):
        for kind, blocks, depth in zip(kinds, layers, deeps, strict=True):
            deep = sum(depth) if isinstance(depth, (list, tuple)) else depth * (blocks + more)
            found += blocks + (deep if kind.startswith("CrossAttn") else 0)
    return found


def _check_levels(name: str, config: Mapping[str, Any], where: str | Path | None) -> None:
    channels = config["block_out_channels"]
    count = len(channels)
    for key in (
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "attention_head_dim",
        "num_attention_heads",
    ):
        value = config.get(key)
        if isinstance(value, (list, tuple)) and len(value) != count:
            raise UserError(
                f"{key} has {len(value)} values, and block_out_channels {count}", where=where
            )
    groups = config.get("norm_num_groups", 32)
    uneven = [c for c in channels if c % groups]
    if uneven:
        raise UserError(
            f"block_out_channels has {uneven[0]}, which does not divide into {groups} groups "
            "(norm_num_groups)",
            where=where,
        )
    if name == "unet":
        _check_attention(config, count, where)


def _check_attention(config: Mapping[str, Any], count: int, where: str | Path | None) -> None:
    value = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    for channels, heads in zip(config["block_out_channels"], _each(value, count), strict=True):
        if heads > channels:
            raise UserError(f"{heads} attention heads for {channels} channels", where=where)
    layers = _each(config.get("layers_per_block", 2), count)
    depths = _each(config.get("transformer_layers_per_block", 1), count)
    for blocks, depth in zip(layers, depths, strict=True):
        if isinstance(depth, (list, tuple)) and len(depth) != blocks:
            raise UserError(
                f"transformer_layers_per_block has {len(depth)} values for {blocks} resblocks",
                where=where,
            )
    added = config.get("addition_embed_type") == "text_time"
    for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
        if added and config.get(key) is None:
            raise UserError(f"{key} is missing from the configuration", where=where)


def _check_text(config: Mapping[str, Any], where: str | Path | None) -> None:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise UserError(
            f"hidden_size is {width}, which does not divide into {heads} attention heads",
            where=where,
        )
    words = config.get("vocab_size", 49408)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = config.get(key)
        if token is not None and token >= words:
            raise UserError(f"{key} is {token}, beyond the {words} words (vocab_size)", where=where)


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count
