"""diffusers' scripts of 2024 and later: rectified-flow models, and the advanced ones.

They share nearly all flags; ``tests/compat/peers.json`` has what their own parsers take. The layers
that get an adapter are named as there, whatever a preset of this engine would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core.compat.dialect import HUGGING_FACE, PLAIN, Defaults, Dialect

_GONE = (
    "tokenizer_name",
    "enable_xformers_memory_efficient_attention",
    "prior_generation_precision",
)
SHARED: Defaults = {
    **{name: value for name, value in HUGGING_FACE.items() if name not in _GONE},
    "learning_rate": 1e-4,
    "adam_weight_decay": 1e-4,
    "optimizer": "AdamW",
    "prodigy_beta3": None,
    "prodigy_decouple": True,
    "prodigy_use_bias_correction": True,
    "prodigy_safeguard_warmup": True,
    "dataset_name": None,
    "dataset_config_name": None,
    "cache_dir": None,
    "image_column": "image",
    "caption_column": None,
    "repeats": 1,
    "validation_epochs": 50,
}
"""What every one of them has, but for ``train_text_encoder``, which comes and goes."""
del SHARED["train_text_encoder"]

FLOW: Defaults = {
    "max_sequence_length": 512,
    "random_flip": False,
    "weighting_scheme": "none",
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
}
ADAPTER: Defaults = {
    "rank": 4,
    "lora_dropout": 0.0,
    "lora_layers": None,
    "cache_latents": False,
    "upcast_before_saving": False,
}
TEXT: Defaults = {
    "text_encoder_lr": 5e-6,
    "adam_weight_decay_text_encoder": 1e-3,
    "prior_generation_precision": None,
}
LARGE: Defaults = {
    "lora_alpha": 4,
    "bnb_quantization_config_path": None,
    "offload": False,
    "skip_final_inference": False,
    "final_validation_prompt": None,
    "aspect_ratio_buckets": None,
    "use_aspect_ratio_buckets": False,
}
"""What those for the largest models have."""
FLUX2: Defaults = {
    **LARGE,
    **TEXT,
    "do_fp8_training": False,
    "guidance_scale": 3.5,
    "enable_npu_flash_attention": False,
    "fsdp_text_encoder": False,
}
LLAMA: Defaults = {
    "pretrained_tokenizer_4_name_or_path": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "pretrained_text_encoder_4_name_or_path": "meta-llama/Meta-Llama-3.1-8B-Instruct",
}
"""HiDream's; Qwen-Image's script took them over and does not use them."""
FLUX: Defaults = {**TEXT, "train_text_encoder": False, "guidance_scale": 3.5}
SD3: Defaults = {
    **TEXT,
    "train_text_encoder": False,
    "max_sequence_length": 77,
    "weighting_scheme": "logit_normal",
    "precondition_outputs": 1,
    "output_dir": "sd3-dreambooth",
}
ADVANCED: Defaults = {
    "train_text_encoder": False,
    "text_encoder_lr": 5e-6,
    "prior_generation_precision": None,
    "token_abstraction": "TOK",
    "num_new_tokens_per_abstraction": 2,
    "train_text_encoder_ti": False,
    "train_text_encoder_ti_frac": 0.5,
    "train_text_encoder_frac": 1.0,
    "image_interpolation_mode": "lanczos",
}
ADVANCED_UNET: Defaults = {
    **ADVANCED,
    "output_dir": "lora-dreambooth-model",
    "pretrained_vae_model_name_or_path": None,
    "adam_weight_decay_text_encoder": None,
    "enable_xformers_memory_efficient_attention": False,
    "snr_gamma": None,
    "noise_offset": 0.0,
    "rank": 4,
    "lora_dropout": 0.0,
    "use_dora": False,
    "cache_latents": False,
}

QKVO = "to_k,to_q,to_v,to_out.0"
JOINT = (
    "attn.to_k,attn.to_q,attn.to_v,attn.to_out.0,"
    "attn.add_k_proj,attn.add_q_proj,attn.add_v_proj,attn.to_add_out"
)
FORWARD = "ff.net.0.proj,ff.net.2,ff_context.net.0.proj,ff_context.net.2"
KREA2 = (
    f"img_in,final_layer.linear,{QKVO},to_gate,ff.up,ff.down,text_fusion.projector,"
    "txt_in.linear_1,txt_in.linear_2,time_embed.linear_1,time_embed.linear_2,time_mod_proj"
)
LIKE_OTHERS = {
    key: value for key, value in PLAIN.items() if not key.startswith(("validation", "save.prec"))
}


def flow(
    script: str,
    output: str,
    layers: str,
    guidance: float,
    *,
    fixed: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Dialect:
    """A script for a rectified-flow model: full fine-tuning where no layers are named."""
    values: dict[str, Any] = {
        **(fixed or {}),
        **LIKE_OTHERS,
        "method.kind": "lora" if layers else "full",
        "validation.num_inference_steps": 28,
        "validation.guidance_scale": guidance,
    }
    values |= {"method.target_modules": layers} if layers else {"save.precision": "fp32"}
    own = {**SHARED, **FLOW, **(ADAPTER if layers else {}), "output_dir": output}
    return Dialect(script, "diffusers", {**own, **defaults}, values)


LATER: tuple[Dialect, ...] = (
    flow("train_dreambooth_lora_z_image", "z-image-dreambooth-lora", QKVO, 5.0, **FLUX2),
    flow(
        "train_dreambooth_lora_flux2_klein",
        "flux-dreambooth-lora",
        "attention",
        4.0,
        **FLUX2,
        text_encoder_out_layers=[10, 20, 30],
        caption_dropout=0.0,
    ),
    flow(
        "train_dreambooth_lora_flux2",
        "flux-dreambooth-lora",
        "attention",
        4.0,
        **FLUX2,
        text_encoder_out_layers=[10, 20, 30],
        remote_text_encoder=False,
    ),
    flow(
        "train_dreambooth_lora_flux",
        "flux-dreambooth-lora",
        f"{JOINT},{FORWARD}",
        3.5,
        **FLUX,
        lora_alpha=4,
        enable_npu_flash_attention=False,
    ),
    flow(
        "train_dreambooth_flux",
        "flux-dreambooth",
        "",
        3.5,
        **{**FLUX, "max_sequence_length": 77},
        image_interpolation_mode="lanczos",
        enable_npu_flash_attention=False,
    ),
    flow(
        "train_dreambooth_lora_flux_advanced",
        "flux-dreambooth-lora",
        f"{JOINT},{FORWARD}",
        3.5,
        **{**FLUX, **ADVANCED, "num_new_tokens_per_abstraction": None},
        lora_alpha=4,
        initializer_concept=None,
        enable_t5_ti=False,
        train_transformer_frac=1.0,
    ),
    flow(
        "train_dreambooth_lora_qwen_image",
        "hidream-dreambooth-lora",
        QKVO,
        4.0,
        **LARGE,
        **LLAMA,
        caption_dropout=0.0,
    ),
    flow(
        "train_dreambooth_lora_krea2",
        "krea2-dreambooth-lora",
        KREA2,
        1.0,
        **{**LARGE, "rank": 32, "lora_alpha": 32, "learning_rate": 3e-4},
        caption_dropout=0.0,
        do_fp8_training=False,
        validation_model_path=None,
        validation_num_inference_steps=8,
        validation_guidance_scale=0.0,
    ),
    flow(
        "train_dreambooth_lora_lumina2",
        "lumina2-dreambooth-lora",
        QKVO,
        4.0,
        max_sequence_length=256,
        system_prompt=None,
        final_validation_prompt=None,
        image_interpolation_mode="lanczos",
        offload=False,
    ),
    flow(
        "train_dreambooth_lora_ideogram4",
        "flux-dreambooth-lora",
        f"{QKVO},w1,w2,w3",
        7.0,
        **{name: value for name, value in FLUX2.items() if name != "use_aspect_ratio_buckets"},
        max_sequence_length=2048,
        weighting_scheme="logit_normal",
        logit_std=1.5,
        upsample_prompt=False,
        prompt_enhancer_head_id="diffusers/qwen3-vl-8b-instruct-lm-head",
        disable_training_autocast=False,
    ),
    flow(
        "train_dreambooth_lora_hidream",
        "hidream-dreambooth-lora",
        "to_k,to_q,to_v,to_out",
        5.0,
        **LLAMA,
        max_sequence_length=128,
        bnb_quantization_config_path=None,
        offload=False,
        skip_final_inference=False,
        final_validation_prompt=None,
    ),
    flow(
        "train_dreambooth_lora_sana",
        "sana-dreambooth-lora",
        "to_k,to_q,to_v",
        4.5,
        fixed={"objective.shift": "none"},
        max_sequence_length=300,
        complex_human_instruction=None,
        lora_alpha=4,
        adam_weight_decay_text_encoder=1e-3,
        offload=False,
        enable_vae_tiling=False,
        enable_npu_flash_attention=False,
    ),
    flow("train_dreambooth_lora_sd3", "", JOINT, 7.0, **SD3, lora_blocks=None),
    flow("train_dreambooth_sd3", "", "", 7.0, **SD3),
    Dialect(
        "train_dreambooth_lora_sd15_advanced",
        "diffusers",
        {**SHARED, **ADVANCED_UNET, "optimizer": "adamW"},
        {**PLAIN, "method.kind": "lora", "method.target_modules": "attention"},
    ),
    Dialect(
        "train_dreambooth_lora_sdxl_advanced",
        "diffusers",
        {
            **SHARED,
            **ADVANCED_UNET,
            "resolution": 1024,
            "random_flip": False,
            "do_edm_style_training": False,
            "clip_skip": None,
            "lora_unet_blocks": None,
            "use_blora": False,
        },
        {**PLAIN, "method.kind": "lora", "method.target_modules": "attention"},
    ),
)
