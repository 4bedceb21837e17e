"""What flags do whose value is not simply that of a configuration key.

The docstring of each says what becomes of the value, in the words of the table for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.compat.draft import Draft
from dreambooth_core.data.concepts import read_concepts_list
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError


def interpolation(draft: Draft, value: str) -> None:
    """lanczos only"""
    if value.lower() != "lanczos":
        raise UserError(
            f"images are scaled by Lanczos, not {value}",
            where="--image_interpolation_mode",
            do="Leave it out, or scale the images before.",
        )


def concepts_list(draft: Draft, value: str) -> None:
    """read from the file"""
    for flag in ("instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt"):
        draft.note(flag, "--concepts_list says it instead, as there")
    draft.config.concepts = read_concepts_list(value)


def vae(draft: Draft, value: str) -> None:
    # A folder, a file, or a hub id, whose files are fetched.
    path = Path(value).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        path = _hub_vae(value)
    draft.set("base.vae", str(path.absolute()))


def _hub_vae(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = ["config.json", "diffusion_pytorch_model.*", "vae/*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            "there is no such file or folder, and the hub has no such model or is out of reach",
            where=f"VAE {name}",
            do="Check the spelling and the network, or give a path.",
        ) from error


def tokenizer(draft: Draft, value: str) -> None:
    """only the base's own"""
    if value != draft.values["pretrained_model_name_or_path"]:
        raise UserError(
            "another tokenizer than the base's own would give its text encoder wrong tokens",
            where="--tokenizer_name",
            do="Leave it out.",
        )


def use_lora(draft: Draft, value: bool) -> None:
    """lora on queries and values; without it full"""
    draft.set("method.kind", "lora" if value else "full")
    if value:
        draft.set("method.target_modules", "query_value")
        return
    for flag in sorted(draft.given):
        if flag.startswith("lora_"):
            draft.note(flag, "nothing without --use_lora, as there")


def rank(draft: Draft, value: int) -> None:
    """alpha is the rank"""
    # rank or lora_rank, whichever was given.
    value = next((draft.values[n] for n in ("rank", "lora_rank") if n in draft.given), value)
    draft.set("method.rank", value)
    draft.set("method.alpha", float(value))


def lora_blocks(draft: Draft, value: str) -> None:
    """the layers in these transformer blocks"""
    layers = [re.escape(name.strip()) for name in draft.config.method.target_modules.split(",")]
    blocks = "|".join(re.escape(block.strip()) for block in value.split(","))
    pattern = rf"transformer_blocks\.({blocks})\.(.*\.)?({'|'.join(layers)})"
    draft.set("method.target_modules", pattern)


def unet_blocks(draft: Draft, value: str) -> None:
    """the attention layers in these blocks"""
    names = [re.escape(name.strip().removeprefix("unet.")) for name in value.split(",")]
    pattern = rf"({'|'.join(names)})\..*\.(to_q|to_k|to_v|to_out\.0)"
    draft.set("method.target_modules", pattern)


B_LORA = "up_blocks.0.attentions.0,up_blocks.0.attentions.1"
"""SDXL's blocks for content and style (Frenkel et al. 2024, arXiv:2403.14572)."""


def b_lora(draft: Draft, value: bool) -> None:
    """B-LoRA's two blocks"""
    if value:
        unet_blocks(draft, B_LORA)


def pivotal(draft: Draft, value: bool) -> None:
    """pivotal: a token and a LoRA"""
    if value:
        draft.set("method.kind", "pivotal")


def weighting_scheme(draft: Draft, value: str) -> None:
    """the noise levels for logit_normal and mode, the weights for sigma_sqrt and cosmap"""
    drawn = value if value in ("logit_normal", "mode") else "none"
    draft.set("objective.timestep_bias", drawn)
    draft.set("objective.weighting", value if value in ("sigma_sqrt", "cosmap") else "none")


def precondition_outputs(draft: Draft, value: int) -> None:
    """1: times the squared share of noise"""
    # The loss between images is that between directions times the squared share of noise.
    weighting = draft.config.objective.weighting
    if value and weighting == "cosmap":
        draft.warn("precondition_outputs", "not together with cosmap; 0 instead")
    elif value:
        draft.set("objective.weighting", "none" if weighting == "sigma_sqrt" else "sigma_squared")


def mixed_precision(draft: Draft, value: str) -> None:
    """what the device can do; without it what accelerate was told"""
    if reason := draft.machine.refuses_precision(value):
        other = "fp16" if draft.machine.device == "cuda" else "no"
        draft.warn("mixed_precision", f"{reason}; {'fp32' if other == 'no' else other} instead")
        value = other
    draft.set("run.mixed_precision", value)


def upcast_before_saving(draft: Draft, value: bool) -> None:
    """fp32; without it that of --mixed_precision"""
    half = draft.config.run.mixed_precision
    draft.set("save.precision", "fp32" if value or half == "no" else half)


def quantization(draft: Draft, value: str) -> None:
    """int8, or nf4 for 4 bits"""
    # A file of transformers' BitsAndBytesConfig.
    path = Path(value).expanduser()
    found = read_json(path)
    if found.get("load_in_4bit"):
        draft.set("memory.quantize", "nf4")
    elif found.get("load_in_8bit"):
        draft.set("memory.quantize", "int8")
    else:
        raise UserError(
            "neither load_in_4bit nor load_in_8bit is true",
            where=path,
            do="Set one of them, or leave --bnb_quantization_config_path out.",
        )


def aspect_ratio_buckets(draft: Draft, value: bool | str) -> None:
    """bucket, with the engine's own sizes"""
    if value:
        draft.set("data.crop", "bucket")
        draft.note("aspect_ratio_buckets", "sizes follow --resolution and the images")


def prior_precision(draft: Draft, value: str) -> None:
    """no is fp32"""
    wanted = "no" if value == "fp32" else value
    if reason := draft.machine.refuses_precision(wanted):
        draft.warn("prior_generation_precision", f"{reason}; fp32 instead")
        wanted = "no"
    draft.set("prior.precision", "fp32" if wanted == "no" else wanted)


def xformers(draft: Draft, value: bool) -> None:
    """auto: xformers, if it works"""
    if not value:
        return
    # "auto" tries xformers first, for every head size there is.
    draft.set("memory.attention", "auto")
    if reason := draft.machine.refuses_xformers:
        draft.warn(
            "enable_xformers_memory_efficient_attention",
            f"xformers does not work here ({reason}); another memory-efficient attention instead",
        )


def eight_bit(draft: Draft, value: bool) -> None:
    """adamw8bit, if it works"""
    if value and (reason := draft.machine.refuses_8bit):
        draft.warn("use_8bit_adam", f"{reason}; 32-bit AdamW instead")
    elif value:
        draft.set("optim.optimizer", "adamw8bit")


def tf32(draft: Draft, value: bool) -> None:
    """on an NVIDIA GPU"""
    if value and draft.machine.device != "cuda":
        draft.warn("allow_tf32", "there is no NVIDIA GPU here; fp32 instead")
    else:
        draft.set("memory.tf32", value)


def optimizer(draft: Draft, value: str) -> None:
    """adamw or prodigy"""
    # AdamW or Prodigy; anything else becomes AdamW with a warning, as there.
    name = value.lower()
    if name not in ("adamw", "prodigy"):
        draft.warn("optimizer", f"{value} is not one of AdamW, prodigy; AdamW instead, as there")
        name = "adamw"
    if name == "prodigy":
        if draft.values.get("use_8bit_adam"):
            draft.warn("use_8bit_adam", "only AdamW has 8 bits; Prodigy in 32 bits, as there")
        draft.set("optim.optimizer", "prodigy")
    elif draft.config.optim.optimizer == "prodigy":
        draft.set("optim.optimizer", "adamw")


def prodigy_argument(name: str) -> Callable[[Draft, Any], None]:
    """An action that passes a flag on to Prodigy, and says when that has no meaning."""

    def act(draft: Draft, value: Any) -> None:
        if str(draft.values.get("optimizer")).lower() == "prodigy":
            draft.config.optim.optimizer_args[name] = str(value).lower()
        else:
            draft.note(f"prodigy_{name}", "nothing without --optimizer prodigy, as there")

    return act


def max_grad_norm(draft: Draft, value: float) -> None:
    """negative is off"""
    draft.set("optim.max_grad_norm", max(value, 0.0))


def snr_gamma(draft: Draft, value: float) -> None:
    """min_snr"""
    draft.set("objective.weighting", "min_snr")
    draft.set("objective.min_snr_gamma", value)


def resume(draft: Draft, value: str) -> None:
    """the step's number"""
    # latest, checkpoint-100 or a path that ends so.
    match = re.fullmatch(r"(?:checkpoint-)?(\d+)", Path(value).name)
    if value != "latest" and not match:
        raise UserError(
            f"{value!r} names no checkpoint",
            where="--resume_from_checkpoint",
            do='Write "latest" or "checkpoint-500".',
        )
    draft.set("run.resume", match.group(1) if match else "latest")


def validation_prompt(draft: Draft, value: str) -> None:
    draft.config.validation.prompts = [value]


def validation_scheduler(draft: Draft, value: str) -> None:
    """dpm++; ddim for DDPM"""
    if value == "DDPMScheduler":
        draft.warn("validation_scheduler", "DDPM needs 1000 steps for an image; DDIM instead")
        draft.set("validation.scheduler", "ddim")
    else:
        draft.set("validation.scheduler", "dpm++")


def report_to(draft: Draft, value: str) -> None:
    """TensorBoard, wandb where it is installed, all or none"""
    name = value.lower()
    draft.set("log.tensorboard", name not in ("none", "wandb"))
    if name == "visualdl":
        draft.notes.append("VisualDL is not written to; TensorBoard shows the same curves")
    elif name in ("wandb", "all"):
        _wandb(draft, only=name == "wandb")
    elif name not in ("tensorboard", "none"):
        draft.warn("report_to", f"{value} is not written to; TensorBoard instead")


def _wandb(draft: Draft, *, only: bool) -> None:
    reason = draft.machine.refuses_wandb
    draft.set("log.wandb", not reason)
    if reason and only:
        draft.warn("report_to", f"{reason}; TensorBoard instead")
        draft.set("log.tensorboard", True)


def wandb_key(draft: Draft, value: str) -> None:
    """the environment variable WANDB_API_KEY, for this process"""
    if draft.config.log.wandb:
        draft.secrets["WANDB_API_KEY"] = value
    else:
        draft.note("wandb_key", "nothing is sent to Weights & Biases")


def push_to_hub(draft: Draft, value: bool) -> None:
    """with --hub_licence and --hub_consent; without them it says how to upload"""
    # Publishes where all is said that publishing needs; else says how to do it by hand.
    if not value:
        return
    output = Path(draft.values["output_dir"]).expanduser()
    name = draft.values.get("hub_model_id") or output.absolute().name
    missing = [f"--{n}" for n in ("hub_licence", "hub_consent") if not draft.values.get(n)]
    if missing:
        draft.warn(
            "push_to_hub",
            f"{' and '.join(missing)} must say what a published model needs; without, nothing "
            f"leaves this machine. Afterwards, by hand: hf upload {name} {output}",
        )
        return
    draft.set("publish.repository", name)
    draft.note("push_to_hub", f"to {name}, as a private repository, with a model card")


def hub_model_id(draft: Draft, value: str) -> None:
    """with --push_to_hub"""
    if not draft.values.get("push_to_hub"):
        draft.note("hub_model_id", "nothing without --push_to_hub, as there")


def hub_token(draft: Draft, value: str) -> None:
    """the environment variable HF_TOKEN, for this process; written nowhere"""
    if not draft.config.publish.repository:
        draft.note("hub_token", "not needed: nothing is uploaded")
        return
    draft.secrets["HF_TOKEN"] = value
    draft.note("hub_token", "others here can read a command line; `hf auth login` keeps a token")


def pad_tokens(draft: Draft, value: bool) -> None:
    """prompts are always padded"""
    draft.note("pad_tokens", "prompts are always padded to 77 tokens, as hosts do")


def final_prompt(draft: Draft, value: str) -> None:
    """as --validation_prompt, where that is not given"""
    if not draft.config.validation.prompts:
        validation_prompt(draft, value)


def validation_guidance(draft: Draft, value: float) -> None:
    """plus 1: 1 is none here"""
    draft.set("validation.guidance_scale", value + 1.0)


def embedded_guidance(draft: Draft, value: float) -> None:
    """nothing with a base that is not told its guidance, as there"""
    # The scripts ask the denoiser; of a hub id that is not here yet the name tells.
    model = draft.config.base.model
    config = Path(model).expanduser() / "transformer" / "config.json"
    if config.is_file():
        told = bool(read_json(config).get("guidance_embeds"))
    else:
        name = model.lower()
        told = "flux" in name and not any(other in name for other in ("schnell", "klein"))
    if told:
        draft.set("base.guidance", value)
    else:
        draft.note("guidance_scale", "nothing: this base is not told its guidance, as there")


def sample_prompt(draft: Draft, value: str) -> None:
    validation_prompt(draft, value)
    draft.set("validation.every_steps", draft.config.save.every_steps)
