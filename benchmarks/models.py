"""The real models' configurations, and bases of those sizes with random weights.

The configurations are published ones, or the defaults of diffusers' classes, which are the
published models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.families.base import Family
from dreambooth_core.families.components import Components
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.families.transformer import TransformerFamily

LEVELS: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FLUX2_LEVELS: dict[str, Any] = {
    "_class_name": "AutoencoderKLFlux2",
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 32,
}
QWEN_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 96,
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
}
QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
QWEN3_VL_8B: dict[str, Any] = {
    "text_config": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
}
QWEN25_VL_7B: dict[str, Any] = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
MISTRAL_SMALL_3: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
    },
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
QWEN3_06B: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
GEMMA2_2B: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
}
LLAMA3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}

MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "SD 1.5": stock_configs("sd1"),
    "SDXL": stock_configs("sdxl"),
    "Z-Image": {
        "transformer": {"_class_name": "ZImageTransformer2DModel"},
        "vae": LEVELS,
        "text_encoder": QWEN3_4B,
    },
    "Flux.2 Klein 4B": {
        "transformer": {
            "_class_name": "Flux2Transformer2DModel",
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        "vae": FLUX2_LEVELS,
        "text_encoder": QWEN3_4B,
    },
    "Flux.2 dev": {
        "transformer": {"_class_name": "Flux2Transformer2DModel"},
        "vae": FLUX2_LEVELS,
        "text_encoder": MISTRAL_SMALL_3,
    },
    "Ideogram 4": {
        "transformer": {"_class_name": "Ideogram4Transformer2DModel"},
        "unconditional_transformer": {"_class_name": "Ideogram4Transformer2DModel"},
        "vae": FLUX2_LEVELS,
        "text_encoder": QWEN3_VL_8B,
    },
    "HiDream": {
        "transformer": {
            "_class_name": "HiDreamImageTransformer2DModel",
            "patch_size": 2,
            "in_channels": 16,
            "caption_channels": [4096, 4096],
            "axes_dims_rope": [64, 32, 32],
            "llama_layers": [*range(32), *[31] * 16],
        },
        "vae": LEVELS,
        "text_encoder": {**CLIP_L, "projection_dim": 768},
        "text_encoder_2": CLIP_BIG_G,
        "text_encoder_3": T5_XXL,
        "text_encoder_4": LLAMA3_8B,
    },
    "Lumina 2": {
        "transformer": {
            "_class_name": "Lumina2Transformer2DModel",
            "axes_dim_rope": [32, 32, 32],
            "axes_lens": [300, 512, 512],
            "cap_feat_dim": 2304,
        },
        "vae": LEVELS,
        "text_encoder": GEMMA2_2B,
    },
    "Sana": {
        "transformer": {"_class_name": "SanaTransformer2DModel", "sample_size": 32},
        "vae": {
            "_class_name": "AutoencoderDC",
            "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
            "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
            "latent_channels": 32,
        },
        "text_encoder": GEMMA2_2B,
    },
    "Anima": {
        "transformer": {
            "_class_name": "CosmosTransformer3DModel",
            "in_channels": 16,
            "num_attention_heads": 16,
            "num_layers": 28,
            "text_embed_dim": 1024,
            "adaln_lora_dim": 256,
            "rope_scale": [1.0, 4.0, 4.0],
            "extra_pos_embed_type": None,
        },
        "vae": QWEN_VAE,
        "text_encoder": QWEN3_06B,
        "text_conditioner": {"_class_name": "AnimaTextConditioner"},
    },
    "Flux.1 dev": {
        "transformer": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        "vae": LEVELS,
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
    },
    "Chroma": {
        "transformer": {"_class_name": "ChromaTransformer2DModel"},
        "vae": LEVELS,
        "text_encoder": T5_XXL,
    },
    "Qwen-Image": {
        "transformer": {"_class_name": "QwenImageTransformer2DModel"},
        "vae": QWEN_VAE,
        "text_encoder": QWEN25_VL_7B,
    },
}


def networks_of(family: Family, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """Networks on the meta device; what is computed and not read has its values."""
    if isinstance(family, TransformerFamily):
        return {name: family.empty(name, configs[name], buffers=True) for name in configs}
    return {name: family.empty(name, configs[name]) for name in configs}


def fill(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Random weights for a network without any: small ones, and norms that change nothing, so that
    what it computes is finite. Drawn once and laid out over all, which is quick."""
    drawn = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.02
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = _values(name, parameter, drawn)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:  # CLIP counts its positions
                counted = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
                module.register_buffer(name, counted, persistent=False)
    return network.eval()


def _values(name: str, like: Tensor, drawn: Tensor) -> Tensor:
    if like.dim() < 2:
        return torch.full(like.shape, float(name == "weight"), dtype=drawn.dtype)
    values = torch.empty(like.shape, dtype=drawn.dtype)
    flat = values.view(-1)
    for start in range(0, flat.numel(), drawn.numel()):
        piece = flat[start : start + drawn.numel()]
        piece.copy_(drawn[: piece.numel()])
    return values


def in_size(
    parts: Components, configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype | None
) -> Components:
    """A base with networks of another size in place of its own: random ones in ``dtype``, the
    autoencoder in fp32, or, for None, on the meta device."""
    family = parts.family
    found = networks_of(family, configs)
    for name, network in found.items():
        if dtype is not None:
            fill(network, torch.float32 if name == "vae" else dtype)
        network.requires_grad_(False)
    parts.denoiser, parts.vae = found[family.denoiser], found["vae"]
    parts.text_encoders = [found[name] for name in family.text_encoders]
    parts.companions = {name: found[name] for name in family.companions}
    return parts
