"""The scripts and their dialects: which flags each has, with which defaults.

Facts from diffusers' examples/dreambooth, ShivamShrirao's fork of it, peft's
examples/lora_dreambooth and ppdiffusers' examples/dreambooth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_core.compat.dialect import (
    COMMON,
    HUGGING_FACE,
    NEWER,
    PLAIN,
    TORCH,
    Defaults,
    Dialect,
)
from dreambooth_core.compat.later import LATER, SHARED, TEXT
from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import Unsupported, UserError

IF_FLAGS: Defaults = {
    "pre_compute_text_embeddings": False,
    "tokenizer_max_length": None,
    "text_encoder_use_attention_mask": False,
    "validation_images": None,
    "class_labels_conditioning": None,
}

FULL: Defaults = {**PLAIN, "method.kind": "full"}
LORA: Defaults = {**PLAIN, "method.kind": "lora", "method.target_modules": "attention"}

PADDLE: Defaults = {
    "adam_weight_decay": 0.02,
    "max_grad_norm": -1.0,
    "height": None,
    "width": None,
    "random_flip": False,
    "dataloader_num_workers": 0,
    "noise_offset": None,
    "report_to": "visualdl",
    "writer_type": None,
    "save_steps": None,
}

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "train_dreambooth",
        "diffusers",
        {
            **HUGGING_FACE,
            **IF_FLAGS,
            "output_dir": "dreambooth-model",
            "validation_steps": 100,
            "set_grads_to_none": False,
            "offset_noise": False,
            "snr_gamma": None,
            "skip_save_text_encoder": False,
            "validation_scheduler": "DPMSolverMultistepScheduler",
        },
        FULL,
    ),
    Dialect(
        "train_dreambooth",
        "shivam",
        {
            **COMMON,
            **TORCH,
            "output_dir": "text-inversion-model",
            "pretrained_vae_name_or_path": None,
            "concepts_list": None,
            "save_sample_prompt": None,
            "save_sample_negative_prompt": None,
            "n_save_sample": 4,
            "save_guidance_scale": 7.5,
            "save_infer_steps": 20,
            "save_interval": 10_000,
            "save_min_steps": 0,
            "log_interval": 10,
            "pad_tokens": False,
            "not_cache_latents": False,
            "hflip": False,
            "read_prompts_from_txts": False,
        },
        {
            **FULL,
            "save.arrangement": "shivam",
            "save.precision": "fp16",
            "save.keep": 1,
            "validation.scheduler": "ddim",
        },
        # Its notebook takes every other entry of the output folder for a number of steps.
        run_folder="0",
    ),
    Dialect(
        "train_dreambooth",
        "peft",
        {
            **COMMON,
            **TORCH,
            **NEWER,
            "output_dir": "text-inversion-model",
            "resume_from_checkpoint": None,
            "allow_tf32": False,
            "prior_generation_precision": None,
            "validation_prompt": None,
            "num_validation_images": 4,
            "validation_steps": 100,
            "use_lora": False,
            "lora_r": 8,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_bias": "none",
            "lora_text_encoder_r": 8,
            "lora_text_encoder_alpha": 32,
            "lora_text_encoder_dropout": 0.0,
            "lora_text_encoder_bias": "none",
            "num_dataloader_workers": 1,
            "no_tracemalloc": False,
            "wandb_key": None,
            "wandb_project_name": None,
        },
        {**FULL, "save.arrangement": "peft"},
    ),
    Dialect(
        "train_dreambooth",
        "ppdiffusers",
        {**COMMON, **NEWER, **PADDLE, "output_dir": "dreambooth-model"},
        FULL,
    ),
    Dialect(
        "train_dreambooth_lora",
        "diffusers",
        {
            **HUGGING_FACE,
            **IF_FLAGS,
            "output_dir": "lora-dreambooth-model",
            "learning_rate": 5e-4,
            "validation_epochs": 50,
            "rank": 4,
            "lora_dropout": 0.0,
            "image_interpolation_mode": "lanczos",
        },
        LORA,
    ),
    Dialect(
        "train_dreambooth_lora",
        "ppdiffusers",
        {
            **COMMON,
            **NEWER,
            **PADDLE,
            **IF_FLAGS,
            "output_dir": "lora-dreambooth-model",
            "learning_rate": 5e-4,
            "validation_prompt": None,
            "num_validation_images": 4,
            "validation_epochs": 50,
            "lora_rank": 4,
            "rank": None,
        },
        LORA,
    ),
    Dialect(
        "train_dreambooth_lora_sdxl",
        "diffusers",
        {
            **SHARED,
            **TEXT,
            "output_dir": "lora-dreambooth-model",
            "resolution": 1024,
            "train_text_encoder": False,
            "enable_xformers_memory_efficient_attention": False,
            "pretrained_vae_model_name_or_path": None,
            "do_edm_style_training": False,
            "output_kohya_format": False,
            "random_flip": False,
            "snr_gamma": None,
            "rank": 4,
            "lora_dropout": 0.0,
            "use_dora": False,
            "image_interpolation_mode": "lanczos",
        },
        LORA,
    ),
    *LATER,
)

SCRIPTS = tuple(dict.fromkeys(dialect.script for dialect in DIALECTS))
CONVERSIONS = (
    "convert_original_stable_diffusion_to_diffusers",
    "convert_diffusers_to_original_stable_diffusion",
)
NAMES = (*SCRIPTS, *CONVERSIONS)
UNTRAINED = {
    "flux_kontext": "a model that edits images",
    "flux2_img2img": "a model that edits images",
    "flux2_klein_img2img": "a model that edits images",
}
"""What diffusers' other scripts train, by the end of the script's name."""


def script_of(name: str) -> str:
    """The script that a command line names, with or without folder and ``.py``.

    Raises:
        Unsupported: it is for Flax.
        UserError: there is none of that name here.
    """
    plain = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".py")
    if plain in NAMES:
        return plain
    if "flax" in plain:
        raise Unsupported(
            "Flax is not used here",
            where=plain,
            do="TPUs are not supported. On a GPU or a CPU use train_dreambooth.",
        )
    model = UNTRAINED.get(plain.removeprefix("train_dreambooth_lora_"))
    if model:
        raise Unsupported(
            f"{model} is not trained by this engine",
            where=plain,
            do="docs/models.md has the models that are.",
        )
    raise UserError(f"no script {plain!r} is known", do=advice(plain, NAMES, most=len(NAMES)))


def dialects_of(script: str) -> list[Dialect]:
    """The dialects of a script, the likeliest first."""
    return [dialect for dialect in DIALECTS if dialect.script == script]


def infer(script: str, given: Mapping[str, Any]) -> tuple[Dialect, list[str]]:
    """Whose script is meant, and the flags that tell.

    The dialect that has most of the given flags; diffusers' if that leaves several.
    """
    candidates = dialects_of(script)
    chosen = min(candidates, key=lambda dialect: len(_foreign(dialect, given)))
    first = candidates[0]
    telling = [] if chosen is first else sorted(_foreign(first, given) - _foreign(chosen, given))
    return chosen, telling


def _foreign(dialect: Dialect, given: Mapping[str, Any]) -> set[str]:
    """What of the command line the dialect does not have."""
    found = {name for name in given if name not in dialect.defaults}
    visual = "visualdl" in (given.get("report_to"), given.get("writer_type"))
    if visual and dialect.name != "ppdiffusers":
        found.add("report_to visualdl")
    return found


def others_that_have(script: str, name: str, but: Dialect) -> list[Dialect]:
    """Other dialects of the script that have a flag."""
    return [d for d in dialects_of(script) if d is not but and name in d.defaults]
