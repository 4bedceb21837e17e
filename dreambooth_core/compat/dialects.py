"""The scripts and their dialects: which flags each has, with which defaults.

Facts from diffusers' examples/dreambooth, ShivamShrirao's fork of it, peft's
examples/lora_dreambooth and ppdiffusers' examples/dreambooth. diffusers' scripts of 2024 and later
(rectified-flow models, and the advanced ones) share nearly all flags; ``tests/compat/peers.json``
has what their own parsers take. The layers that get an adapter are named as there, whatever a
preset of this engine would take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import Unsupported, UserError


@dataclass(frozen=True)
class Dialect:
    """One script as one project has it."""

    script: str
    flags: str
    """Every flag that it has: ``name``, or ``name=default`` where there is one. A later word goes
    over an earlier one, and ``-name`` takes a flag out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Configuration keys that hold whatever the flags say."""
    name: str = "diffusers"
    """Whose script it is."""
    run_folder: str = ""
    """Where in the output folder the run's own files lie; empty for the folder itself."""

    @property
    def whose(self) -> str:
        """The name as an owner."""
        return f"{self.name}'" if self.name.endswith("s") else f"{self.name}'s"

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Every flag that it has, with its default."""
        found: dict[str, Any] = {}
        for word in self.flags.split():
            name, equals, value = word.partition("=")
            if name.startswith("-"):
                found.pop(name[1:])
            else:
                found[name] = _default(value) if equals else None
        return found


def _default(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


COMMON = """pretrained_model_name_or_path tokenizer_name instance_data_dir class_data_dir
instance_prompt class_prompt with_prior_preservation=false prior_loss_weight=1.0
num_class_images=100 seed resolution=512 center_crop=false train_text_encoder=false
train_batch_size=4 sample_batch_size=4 num_train_epochs=1 max_train_steps
gradient_accumulation_steps=1 gradient_checkpointing=false learning_rate=5e-6 scale_lr=false
lr_scheduler=constant lr_warmup_steps=500 adam_beta1=0.9 adam_beta2=0.999 adam_weight_decay=1e-2
adam_epsilon=1e-8 max_grad_norm=1.0 push_to_hub=false hub_token hub_model_id hub_licence
hub_consent logging_dir=logs"""
"""What every one of them has, and two flags of our own: what publishing needs to know."""
TORCH = f"{COMMON} revision use_8bit_adam=false mixed_precision local_rank=-1"
"""What those for PyTorch have."""
NEWER = """checkpointing_steps=500 lr_num_cycles=1 lr_power=1.0 report_to=tensorboard
enable_xformers_memory_efficient_attention=false"""
"""What those have that were written after the end of 2022."""
VALIDATED = "validation_prompt num_validation_images=4"
HUGGING_FACE = f"""{TORCH} {NEWER} {VALIDATED} variant checkpoints_total_limit
resume_from_checkpoint dataloader_num_workers=0 allow_tf32=false prior_generation_precision"""
"""What diffusers' own have."""
IF_FLAGS = """pre_compute_text_embeddings=false tokenizer_max_length
text_encoder_use_attention_mask=false validation_images class_labels_conditioning"""
PADDLE = f"""{COMMON} {NEWER} adam_weight_decay=0.02 max_grad_norm=-1.0 height width
random_flip=false dataloader_num_workers=0 noise_offset report_to=visualdl writer_type save_steps"""
TO_LORA = "output_dir=lora-dreambooth-model learning_rate=5e-4 validation_epochs=50"
LANCZOS = "image_interpolation_mode=lanczos"

SHARED = f"""{HUGGING_FACE} -tokenizer_name -enable_xformers_memory_efficient_attention
-prior_generation_precision -train_text_encoder learning_rate=1e-4 adam_weight_decay=1e-4
optimizer=AdamW prodigy_beta3 prodigy_decouple=true prodigy_use_bias_correction=true
prodigy_safeguard_warmup=true dataset_name dataset_config_name cache_dir image_column=image
caption_column repeats=1 validation_epochs=50"""
"""What every one of the later ones has, but for ``train_text_encoder``, which comes and goes."""
FLOW = f"""{SHARED} max_sequence_length=512 random_flip=false weighting_scheme=none logit_mean=0.0
logit_std=1.0 mode_scale=1.29"""
ADAPTER = "rank=4 lora_dropout=0.0"
TEXT = "text_encoder_lr=5e-6 adam_weight_decay_text_encoder=1e-3 prior_generation_precision"
LARGE = """lora_alpha=4 bnb_quantization_config_path offload=false skip_final_inference=false
final_validation_prompt aspect_ratio_buckets use_aspect_ratio_buckets=false"""
"""What those for the largest models have."""
FLUX2 = f"""{LARGE} {TEXT} do_fp8_training=false guidance_scale=3.5
enable_npu_flash_attention=false fsdp_text_encoder=false"""
LLAMA = """pretrained_tokenizer_4_name_or_path=meta-llama/Meta-Llama-3.1-8B-Instruct
pretrained_text_encoder_4_name_or_path=meta-llama/Meta-Llama-3.1-8B-Instruct"""
"""HiDream's; Qwen-Image's script took them over and does not use them."""
FLUX = f"{TEXT} train_text_encoder=false guidance_scale=3.5"
SD3 = f"""{TEXT} train_text_encoder=false max_sequence_length=77 weighting_scheme=logit_normal
precondition_outputs=1 output_dir=sd3-dreambooth"""
ADVANCED = f"""train_text_encoder=false text_encoder_lr=5e-6 prior_generation_precision
token_abstraction=TOK num_new_tokens_per_abstraction=2 train_text_encoder_ti=false
train_text_encoder_ti_frac=0.5 train_text_encoder_frac=1.0 {LANCZOS}"""
ADVANCED_UNET = f"""{SHARED} {ADVANCED} {ADAPTER} output_dir=lora-dreambooth-model
pretrained_vae_model_name_or_path adam_weight_decay_text_encoder
enable_xformers_memory_efficient_attention=false snr_gamma noise_offset=0.0 use_dora=false
cache_latents=false"""

ALIKE = {"data.captions": "prompt", "data.subfolders": False, "save.arrangement": "diffusers"}
"""How they all take images and write results."""
PLAIN = {
    **ALIKE,
    "save.precision": "fp32",
    "validation.num_inference_steps": 25,
    "validation.guidance_scale": 7.5,
    "validation.scheduler": "dpm++",
}
"""And how those for Stable Diffusion make images."""
FULL = {**PLAIN, "method.kind": "full"}
LORA = {**PLAIN, "method.kind": "lora", "method.target_modules": "attention"}

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


def flow(script: str, layers: str, guidance: float, flags: str, **fixed: Any) -> Dialect:
    """A script for a rectified-flow model: full fine-tuning where no layers are named."""
    values: dict[str, Any] = {
        **fixed,
        **ALIKE,
        "method.kind": "lora" if layers else "full",
        "validation.num_inference_steps": 28,
        "validation.guidance_scale": guidance,
    }
    values |= {"method.target_modules": layers} if layers else {"save.precision": "fp32"}
    own = (
        f"""{FLOW} {ADAPTER} lora_layers cache_latents=false
    upcast_before_saving=false"""
        if layers
        else FLOW
    )
    return Dialect(f"train_dreambooth_{script}", f"{own} {flags}", values)


LATER = (
    flow("lora_z_image", QKVO, 5.0, f"{FLUX2} output_dir=z-image-dreambooth-lora"),
    flow(
        "lora_flux2_klein",
        "attention",
        4.0,
        f"""{FLUX2} output_dir=flux-dreambooth-lora text_encoder_out_layers=[10,20,30]
        caption_dropout=0.0""",
    ),
    flow(
        "lora_flux2",
        "attention",
        4.0,
        f"""{FLUX2} output_dir=flux-dreambooth-lora text_encoder_out_layers=[10,20,30]
        remote_text_encoder=false""",
    ),
    flow(
        "lora_flux",
        f"{JOINT},{FORWARD}",
        3.5,
        f"{FLUX} output_dir=flux-dreambooth-lora lora_alpha=4 enable_npu_flash_attention=false",
    ),
    flow(
        "flux",
        "",
        3.5,
        f"""{FLUX} output_dir=flux-dreambooth max_sequence_length=77 {LANCZOS}
        enable_npu_flash_attention=false""",
    ),
    flow(
        "lora_flux_advanced",
        f"{JOINT},{FORWARD}",
        3.5,
        f"""{FLUX} {ADVANCED} output_dir=flux-dreambooth-lora num_new_tokens_per_abstraction
        lora_alpha=4 initializer_concept enable_t5_ti=false train_transformer_frac=1.0""",
    ),
    flow(
        "lora_qwen_image",
        QKVO,
        4.0,
        f"{LARGE} {LLAMA} output_dir=hidream-dreambooth-lora caption_dropout=0.0",
    ),
    flow(
        "lora_krea2",
        KREA2,
        1.0,
        f"""{LARGE} output_dir=krea2-dreambooth-lora rank=32 lora_alpha=32 learning_rate=3e-4
        caption_dropout=0.0 do_fp8_training=false validation_model_path
        validation_num_inference_steps=8 validation_guidance_scale=0.0""",
    ),
    flow(
        "lora_lumina2",
        QKVO,
        4.0,
        f"""output_dir=lumina2-dreambooth-lora max_sequence_length=256 system_prompt
        final_validation_prompt {LANCZOS} offload=false""",
    ),
    flow(
        "lora_ideogram4",
        f"{QKVO},w1,w2,w3",
        7.0,
        f"""{FLUX2} -use_aspect_ratio_buckets output_dir=flux-dreambooth-lora
        max_sequence_length=2048 weighting_scheme=logit_normal logit_std=1.5 upsample_prompt=false
        prompt_enhancer_head_id=diffusers/qwen3-vl-8b-instruct-lm-head
        disable_training_autocast=false""",
    ),
    flow(
        "lora_hidream",
        "to_k,to_q,to_v,to_out",
        5.0,
        f"""{LLAMA} output_dir=hidream-dreambooth-lora max_sequence_length=128
        bnb_quantization_config_path offload=false skip_final_inference=false
        final_validation_prompt""",
    ),
    flow(
        "lora_sana",
        "to_k,to_q,to_v",
        4.5,
        """output_dir=sana-dreambooth-lora max_sequence_length=300 complex_human_instruction
        lora_alpha=4 adam_weight_decay_text_encoder=1e-3 offload=false enable_vae_tiling=false
        enable_npu_flash_attention=false""",
        **{"objective.shift": "none"},
    ),
    flow("lora_sd3", JOINT, 7.0, f"{SD3} lora_blocks"),
    flow("sd3", "", 7.0, SD3),
    Dialect("train_dreambooth_lora_sd15_advanced", f"{ADVANCED_UNET} optimizer=adamW", LORA),
    Dialect(
        "train_dreambooth_lora_sdxl_advanced",
        f"""{ADVANCED_UNET} resolution=1024 random_flip=false do_edm_style_training=false clip_skip
        lora_unet_blocks use_blora=false""",
        LORA,
    ),
)
"""diffusers' scripts of 2024 and later."""

SHIVAM = {
    "save.arrangement": "shivam",
    "save.precision": "fp16",
    "save.keep": 1,
    "validation.scheduler": "ddim",
}

DIALECTS = (
    Dialect(
        "train_dreambooth",
        f"""{HUGGING_FACE} {IF_FLAGS} output_dir=dreambooth-model validation_steps=100
        set_grads_to_none=false offset_noise=false snr_gamma skip_save_text_encoder=false
        validation_scheduler=DPMSolverMultistepScheduler""",
        FULL,
    ),
    Dialect(
        "train_dreambooth",
        f"""{TORCH} output_dir=text-inversion-model pretrained_vae_name_or_path concepts_list
        save_sample_prompt save_sample_negative_prompt n_save_sample=4 save_guidance_scale=7.5
        save_infer_steps=20 save_interval=10000 save_min_steps=0 log_interval=10 pad_tokens=false
        not_cache_latents=false hflip=false read_prompts_from_txts=false""",
        {**FULL, **SHIVAM},
        "shivam",
        # Its notebook takes every other entry of the output folder for a number of steps.
        run_folder="0",
    ),
    Dialect(
        "train_dreambooth",
        f"""{TORCH} {NEWER} {VALIDATED} output_dir=text-inversion-model resume_from_checkpoint
        allow_tf32=false prior_generation_precision validation_steps=100 use_lora=false lora_r=8
        lora_alpha=32 lora_dropout=0.0 lora_bias=none lora_text_encoder_r=8
        lora_text_encoder_alpha=32 lora_text_encoder_dropout=0.0 lora_text_encoder_bias=none
        num_dataloader_workers=1 no_tracemalloc=false wandb_key wandb_project_name""",
        {**FULL, "save.arrangement": "peft"},
        "peft",
    ),
    Dialect("train_dreambooth", f"{PADDLE} output_dir=dreambooth-model", FULL, "ppdiffusers"),
    Dialect(
        "train_dreambooth_lora", f"{HUGGING_FACE} {IF_FLAGS} {TO_LORA} {ADAPTER} {LANCZOS}", LORA
    ),
    Dialect(
        "train_dreambooth_lora",
        f"{PADDLE} {IF_FLAGS} {TO_LORA} {VALIDATED} lora_rank=4 rank",
        LORA,
        "ppdiffusers",
    ),
    Dialect(
        "train_dreambooth_lora_sdxl",
        f"""{SHARED} {TEXT} {ADAPTER} {LANCZOS} output_dir=lora-dreambooth-model resolution=1024
        train_text_encoder=false enable_xformers_memory_efficient_attention=false
        pretrained_vae_model_name_or_path do_edm_style_training=false output_kohya_format=false
        random_flip=false snr_gamma use_dora=false""",
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
EDITING = ("flux_kontext", "flux2_img2img", "flux2_klein_img2img")
"""The ends of names of diffusers' scripts for models that edit images."""


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
    if plain.removeprefix("train_dreambooth_lora_") in EDITING:
        raise Unsupported(
            "a model that edits images is not trained by this engine",
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
