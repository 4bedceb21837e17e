"""What training the real models is estimated to need: ``python -m benchmarks.estimates``.

``--aims`` prints what each is to fit into instead, with RAM and seconds a step.

Nothing is loaded: the networks' configurations stand here (published ones, or the defaults of
diffusers' classes, which are the published models) and are traced on the meta device. One row a
model and size: as it is (bf16, AdamW, rank 16), and fitted into budgets by ``memory.budget``.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from dreambooth_core.config.loading import load
from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.stock import stock_configs
from dreambooth_core.memory.advice import fit
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig

log = logging.getLogger(__name__)

BUDGETS = (8, 12, 16, 24)
GIB = 1024**3

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


AIMS: tuple[tuple[str, str, int, int], ...] = (
    ("SD 1.5", "lora", 512, 3),
    ("SD 1.5", "full", 512, 5),
    ("SDXL", "lora", 1024, 5),
    ("SDXL", "full", 1024, 12),
    ("Z-Image", "lora", 1024, 6),
    ("Flux.2 Klein 4B", "lora", 1024, 6),
    ("Flux.1 dev", "lora", 1024, 8),
    ("Qwen-Image", "lora", 1024, 12),
)
"""Model, method, side in pixels, and GB of a card that is to be enough."""


def aim(name: str, method: str, size: int, budget: int) -> None:
    """Prints whether a model is estimated to fit where it is to fit."""
    common = [
        f"data.resolution={size}",
        f"method.kind={method}",
        "run.mixed_precision=bf16",
        "run.batch_size=1",
        "optim.optimizer=adamw8bit",
    ]
    config = load(TrainConfig, overrides=[*common, f"memory.budget={budget}GB"])
    try:
        found = fit(config, {"optim.optimizer"}, configs=MODELS[name], elsewhere=True)
    except UserError as error:
        print(f"| {name} | {method} | {size} | {budget} | no: {error.line} | | | |", flush=True)
        return
    needs = found.needs or Planner(found.config, MODELS[name], device="cuda").needs()
    words = ", ".join(f"`{each.words}`" for each in found.taken) or "as it is"
    numbers = f"{needs.peak / GIB:.1f} | {needs.ram / GIB:.0f} | {needs.training.seconds:.1f}"
    print(f"| {name} | {method} | {size} | {budget} | {numbers} | {words} |", flush=True)


def row(name: str, size: int) -> None:
    """Prints one line of the table."""
    common = [f"data.resolution={size}", "run.mixed_precision=bf16", "run.batch_size=1"]
    config = load(TrainConfig, overrides=common)
    plain = Planner(config, MODELS[name], device="cuda").needs().peak / GIB
    cells = [f"{plain:.1f}"]
    for budget in BUDGETS:
        config = load(TrainConfig, overrides=[*common, f"memory.budget={budget}GB"])
        try:
            found = fit(config, configs=MODELS[name], elsewhere=True)
        except UserError as error:
            log.info("%s", error.line)
            cells.append("no")
            continue
        words = ", ".join(each.words for each in found.taken) or "as it is"
        cells.append(f"{found.needs.peak / GIB:.1f} ({words})" if found.needs else "?")
    print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all of them by default")
    parser.add_argument("--aims", action="store_true", help="what each is to fit into")
    args = parser.parse_args()
    wanted = args.names or list(MODELS)
    if args.aims:
        print("| model | method | px | card, GB | estimate, GiB | RAM, GiB | s a step | settings |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for each in AIMS:
            if each[0] in wanted:
                aim(*each)
        return
    print(f"| model | px | GiB as it is | {' | '.join(f'{b} GB' for b in BUDGETS)} |")
    print(f"| --- | --- | --- {'| --- ' * len(BUDGETS)}|")
    for name in wanted:
        for size in (512, 1024):
            row(name, size)


if __name__ == "__main__":
    main()
