"""Every value that the configuration of a network or a scheduler may have, and what must agree.

The ranges are far beyond any real model and far below what could fill a memory: a folder that
asks for a billion channels is refused here, by arithmetic, before a library sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.formats.checkpoints.parts import PREDICTIONS
from dreambooth_core.formats.checkpoints.rules import (
    FLAG,
    NOTHING,
    check,
    each,
    listed,
    named,
    number,
    one_of,
    refuse,
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

UNET = named(
    (NOTHING | one_of("UNet2DConditionModel"), "_class_name"),
    (NOTHING | _EDGE | listed(_EDGE, 2, 2), "sample_size"),
    (whole(1, 64), "in_channels out_channels"),
    (FLAG, "center_input_sample flip_sin_to_cos use_linear_projection resnet_skip_time_act"),
    (number(0, 1000), "freq_shift"),
    (listed(_WIDTH, LEVELS), "block_out_channels"),
    (listed(_DOWN, LEVELS), "down_block_types"),
    (listed(_UP, LEVELS), "up_block_types"),
    (one_of("UNetMidBlock2DCrossAttn", None), "mid_block_type"),
    (one_of(False), "only_cross_attention dual_cross_attention class_embeddings_concat"),
    (one_of(False, None), "mid_block_only_cross_attention"),
    (_BLOCKS | listed(_BLOCKS, LEVELS), "layers_per_block"),
    (_DEPTHS, "transformer_layers_per_block"),
    (NOTHING | _DEPTHS, "reverse_transformer_layers_per_block"),
    (_HEADS | listed(_HEADS, LEVELS), "attention_head_dim"),
    (NOTHING | _HEADS | listed(_HEADS, LEVELS), "num_attention_heads"),
    (_WIDTH, "cross_attention_dim"),
    (whole(0, 8), "downsample_padding"),
    (number(1e-3, 1e3), "mid_block_scale_factor resnet_out_scale_factor"),
    (number(0, 0.999), "dropout"),
    (_ACTIVATIONS, "act_fn"),
    (_HEADS, "norm_num_groups addition_embed_type_num_heads"),
    (_SMALL, "norm_eps"),
    (FLAG | NOTHING, "upcast_attention"),
    (one_of(None, "text_time"), "addition_embed_type"),
    (NOTHING | _WIDTH, "addition_time_embed_dim time_cond_proj_dim"),
    (NOTHING | whole(1, 65536), "projection_class_embeddings_input_dim"),
    (
        NOTHING,
        "class_embed_type num_class_embeds encoder_hid_dim encoder_hid_dim_type "
        "time_embedding_dim time_embedding_act_fn timestep_post_act cross_attention_norm",
    ),
    (one_of(3), "conv_in_kernel conv_out_kernel"),
    (one_of("positional"), "time_embedding_type"),
    (one_of("default"), "resnet_time_scale_shift attention_type"),
)
VAE = named(
    (NOTHING | one_of("AutoencoderKL"), "_class_name"),
    (one_of(3), "in_channels out_channels"),
    (listed(_WIDTH, LEVELS), "block_out_channels"),
    (listed(one_of("DownEncoderBlock2D"), LEVELS), "down_block_types"),
    (listed(one_of("UpDecoderBlock2D"), LEVELS), "up_block_types"),
    (whole(0, 16), "layers_per_block"),
    (_ACTIVATIONS, "act_fn"),
    (whole(1, 64), "latent_channels"),
    (_HEADS, "norm_num_groups"),
    (_EDGE | listed(_EDGE, 2, 2), "sample_size"),
    (number(1e-4, 1e4), "scaling_factor"),
    (NOTHING | number(-1e4, 1e4), "shift_factor"),
    (NOTHING | listed(number(-1e4, 1e4), 64), "latents_mean"),
    (NOTHING | listed(number(1e-6, 1e4), 64), "latents_std"),
    (FLAG, "force_upcast use_quant_conv use_post_quant_conv"),
    (one_of(True), "mid_block_add_attention"),
)
TEXT = named(
    (whole(1, 1_000_000), "vocab_size"),
    (_WIDTH, "hidden_size"),
    (whole(1, 65536), "intermediate_size"),
    (NOTHING | _WIDTH, "projection_dim"),
    (whole(1, 128), "num_hidden_layers"),
    (_HEADS, "num_attention_heads"),
    (whole(3, 8192), "max_position_embeddings"),
    (one_of("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"), "hidden_act"),
    (_SMALL, "layer_norm_eps"),
    (_SHARE, "attention_dropout dropout"),
    (number(0, 1e3), "initializer_factor initializer_range"),
    (NOTHING | whole(0, 1_000_000), "bos_token_id eos_token_id pad_token_id"),
)
_BETA = number(1e-9, 0.999)
SCHEDULER = named(
    (whole(1, 100_000), "num_train_timesteps"),
    (_BETA, "beta_start beta_end"),
    (one_of("linear", "scaled_linear", "squaredcos_cap_v2"), "beta_schedule"),
    (one_of(*PREDICTIONS), "prediction_type"),
    (NOTHING | listed(_BETA, 100_000), "trained_betas"),
    (one_of("leading", "linspace", "trailing"), "timestep_spacing"),
    (whole(0, 1000), "steps_offset"),
    (
        FLAG,
        "rescale_betas_zero_snr set_alpha_to_one skip_prk_steps clip_sample thresholding "
        "lower_order_final euler_at_final predict_x0",
    ),
    (number(1e-3, 1e4), "clip_sample_range sample_max_value"),
    (_SHARE, "dynamic_thresholding_ratio"),
    (one_of("linear", "log_linear"), "interpolation_type"),
    (one_of("discrete", "continuous"), "timestep_type"),
    (one_of("zero", "sigma_min"), "final_sigmas_type"),
    (FLAG | NOTHING, "use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_flow_sigmas"),
    (NOTHING | number(0.01, 100.0), "flow_shift"),
    (NOTHING | number(0, 1e6), "sigma_min sigma_max"),
    (whole(1, 3), "solver_order"),
    (one_of("midpoint", "heun", "bh1", "bh2", "logrho"), "solver_type"),
    (NOTHING, "solver_p"),
    (listed(whole(0, 1000), 1000, 0), "disable_corrector"),
    (number(-1e6, 1e6) | one_of(float("-inf")), "lambda_min_clipped"),
    (NOTHING | one_of("fixed_small", "fixed_small_log", "fixed_large"), "variance_type"),
)

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

    Raises:
        UserError: a value out of its range or of another type, or values that contradict.
    """
    check(config, _RULES.get(name, TEXT), where, required=_REQUIRED.get(name, _REQUIRED_TEXT))
    refuse(_levels(name, config) if name in _RULES else _text(config), where)


def check_scheduler(config: Mapping[str, Any], where: str | Path | None) -> None:
    """Refuses the configuration of a scheduler that no noise schedule follows from.

    Raises:
        UserError: names the key.
    """
    check(config, SCHEDULER, where)
    refuse(_schedule(config), where)


def _schedule(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("_class_name")
    if not isinstance(kind, str) or not kind.endswith("Scheduler") or kind.startswith("Flow"):
        yield f"_class_name is {kind!r}, which is not a scheduler of Stable Diffusion"
    start, end = config.get("beta_start", 0.0), config.get("beta_end", 1.0)
    if start > end:
        yield f"beta_start is {start}, more than beta_end, {end}"
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        yield f"trained_betas has {len(betas)} values for {steps} timesteps"


def blocks_in(name: str, config: Mapping[str, Any]) -> int:
    """How many resblocks and transformer blocks a checked configuration asks for, about.

    Far fewer than tensors in any file that fits it: a cheap look before anything is built.
    """
    if name not in _RULES:
        return int(config["num_hidden_layers"])
    count = len(config["block_out_channels"])
    layers = each(config.get("layers_per_block", 2), count)
    if name == "vae":
        return 2 * sum(layers)
    reverse = config.get("reverse_transformer_layers_per_block")
    ways = (
        ("down_block_types", config.get("transformer_layers_per_block", 1), 0),
        ("up_block_types", 0 if reverse is None else reverse, 1),
    )
    found = 0
    for types, depths, more in ways:
        for kind, blocks, depth in zip(config[types], layers, each(depths, count), strict=True):
            deep = sum(depth) if isinstance(depth, (list, tuple)) else depth * (blocks + more)
            found += blocks + (deep if kind.startswith("CrossAttn") else 0)
    return found


def _levels(name: str, config: Mapping[str, Any]) -> Iterator[str]:
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
            yield f"{key} has {len(value)} values, and block_out_channels {count}"
    groups = config.get("norm_num_groups", 32)
    for uneven in (c for c in channels if c % groups):
        yield (
            f"block_out_channels has {uneven}, which does not divide into {groups} groups "
            "(norm_num_groups)"
        )
    if name != "unet":
        return
    value = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    for width, heads in zip(channels, each(value, count), strict=True):
        if heads > width:
            yield f"{heads} attention heads for {width} channels"
    layers = each(config.get("layers_per_block", 2), count)
    depths = each(config.get("transformer_layers_per_block", 1), count)
    for blocks, depth in zip(layers, depths, strict=True):
        if isinstance(depth, (list, tuple)) and len(depth) != blocks:
            yield f"transformer_layers_per_block has {len(depth)} values for {blocks} resblocks"
    if config.get("addition_embed_type") == "text_time":
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if config.get(key) is None:
                yield f"{key} is missing from the configuration"


def _text(config: Mapping[str, Any]) -> Iterator[str]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        yield f"hidden_size is {width}, which does not divide into {heads} attention heads"
    words = config.get("vocab_size", 49408)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = config.get(key)
        if token is not None and token >= words:
            yield f"{key} is {token}, beyond the {words} words (vocab_size)"
