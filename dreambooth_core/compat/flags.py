"""The table: every flag of the scripts, and what it becomes.

A flag sets a configuration key to its value, or does what its action does, or means nothing here
(and says so when it is given), or is refused with a reason. None is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth_core.compat import actions
from dreambooth_core.compat.dialects import dialects_of
from dreambooth_core.compat.draft import Draft

Kind = Literal["text", "int", "float", "switch", "truth", "texts"]


@dataclass(frozen=True)
class Flag:
    """One flag."""

    name: str
    kind: Kind
    """``switch`` takes no value, ``truth`` takes true or false, ``texts`` several texts."""
    key: str = ""
    """The configuration key; several are separated by commas."""
    how: str = ""
    """What becomes of the value where it is not simply the key's, for people."""
    act: Callable[[Draft, Any], None] | None = None
    """Does more than setting the key; its docstring says what, where ``how`` does not."""
    refused: str = ""
    """Why the flag cannot be given."""
    harmless: tuple[Any, ...] = ()
    """Values that may be given all the same."""
    choices: tuple[str | int, ...] = ()
    either: tuple[Any, Any] | None = None
    """What a switch sets the key to, and what where it is left out."""
    cross: bool = False
    """Whether it is looked at together with others, when all are known."""

    @property
    def told(self) -> str:
        """What becomes of the value, for people; empty where it is simply the key's."""
        either = "{}; without it {}".format(*self.either) if self.either else ""
        return self.how or either or (self.act and self.act.__doc__) or ""

    @property
    def verdict(self) -> str:
        """``mapped``, ``refused``, or ``nothing`` where the flag has no meaning here."""
        if self.refused:
            return "refused"
        return "mapped" if self.key or self.act or self.cross else "nothing"


PRECISIONS = ("no", "fp16", "bf16")
_IF_ONLY = "it is for DeepFloyd IF, which this engine does not train"
_HUB_DATA = "images come from a folder"
_OWN_TEXT = "prompts are encoded as the base's own pipeline does"
_LLAMA = "HiDream's Llama lies in the base's own folder, as text_encoder_4 and tokenizer_4"
_TO_THE_END = "what is trained is trained to the end"

PRODIGY: dict[str, Kind] = {
    "beta3": "float",
    "decouple": "truth",
    "use_bias_correction": "truth",
    "safeguard_warmup": "truth",
}

FLAGS: tuple[Flag, ...] = (
    # The base.
    Flag("pretrained_model_name_or_path", "text", "base.model"),
    Flag("revision", "text", "base.revision"),
    Flag("variant", "text", "base.variant"),
    Flag("pretrained_vae_name_or_path", "text", "base.vae", act=actions.vae),
    Flag("pretrained_vae_model_name_or_path", "text", "base.vae", act=actions.vae),
    Flag("tokenizer_name", "text", act=actions.tokenizer),
    # Concepts and images.
    Flag("instance_data_dir", "text", "concepts[0].images"),
    Flag("class_data_dir", "text", "concepts[0].class_images"),
    Flag("instance_prompt", "text", "concepts[0].instance_prompt"),
    Flag("class_prompt", "text", "concepts[0].class_prompt"),
    Flag("repeats", "int", "concepts[0].repeats"),
    Flag("concepts_list", "text", "concepts", act=actions.concepts_list),
    Flag("resolution", "int", "data.resolution"),
    Flag("height", "int", "data.height"),
    Flag("width", "int", "data.width"),
    Flag("center_crop", "switch", "data.crop", either=("center", "random")),
    Flag("random_flip", "switch", "data.flip"),
    Flag("hflip", "switch", "data.flip"),
    Flag("image_interpolation_mode", "text", act=actions.interpolation),
    Flag("read_prompts_from_txts", "switch", "data.captions", either=("files", "prompt")),
    Flag("not_cache_latents", "switch", "data.cache", either=("none", "memory")),
    Flag("cache_latents", "switch", how="always so"),
    Flag("use_aspect_ratio_buckets", "switch", "data.crop", act=actions.aspect_ratio_buckets),
    Flag("aspect_ratio_buckets", "text", "data.crop", act=actions.aspect_ratio_buckets),
    Flag("caption_dropout", "float", "data.caption_dropout_rate"),
    Flag("pad_tokens", "switch", act=actions.pad_tokens),
    Flag("dataset_name", "text", refused=f"{_HUB_DATA}: save the data set to one"),
    Flag("dataset_config_name", "text", refused=_HUB_DATA),
    Flag("image_column", "text", refused=_HUB_DATA, harmless=("image",)),
    Flag("caption_column", "text", refused=f"{_HUB_DATA}, captions from .txt files there"),
    Flag("cache_dir", "text", refused="the environment variable HF_HOME says where files go"),
    # Prior preservation.
    Flag("with_prior_preservation", "switch", "prior.enabled"),
    Flag("prior_loss_weight", "float", "prior.loss_weight"),
    Flag("num_class_images", "int", "prior.num_class_images"),
    Flag("sample_batch_size", "int", "prior.batch_size"),
    Flag(
        "prior_generation_precision",
        "text",
        "prior.precision",
        act=actions.prior_precision,
        choices=("no", "fp32", "fp16", "bf16"),
    ),
    # The method.
    Flag("train_text_encoder", "switch", "method.train_text_encoder"),
    Flag("use_lora", "switch", "method.kind, method.target_modules", act=actions.use_lora),
    Flag("rank", "int", "method.rank, method.alpha", act=actions.rank),
    Flag("lora_rank", "int", "method.rank, method.alpha", act=actions.rank),
    Flag("lora_r", "int", "method.rank"),
    Flag("lora_alpha", "float", "method.alpha"),
    Flag("lora_dropout", "float", "method.dropout"),
    Flag("lora_layers", "text", "method.target_modules"),
    Flag("lora_blocks", "text", "method.target_modules", act=actions.lora_blocks),
    Flag("lora_unet_blocks", "text", "method.target_modules", act=actions.unet_blocks),
    Flag("use_blora", "switch", "method.target_modules", act=actions.b_lora),
    Flag("lora_bias", "text", refused="no host takes biases", harmless=("none",)),
    Flag("lora_text_encoder_r", "int", "method.text_rank"),
    Flag("lora_text_encoder_alpha", "float", "method.text_alpha"),
    Flag("lora_text_encoder_dropout", "float", "method.text_dropout"),
    Flag("lora_text_encoder_bias", "text", refused="no host takes biases", harmless=("none",)),
    Flag("use_dora", "switch", "method.kind", either=("dora", "lora")),
    Flag("train_text_encoder_ti", "switch", "method.kind", act=actions.pivotal),
    Flag("token_abstraction", "text", "method.placeholder_token"),
    Flag("num_new_tokens_per_abstraction", "int", "method.num_vectors"),
    Flag("initializer_concept", "text", "method.initializer_token"),
    Flag("train_text_encoder_ti_frac", "float", refused=_TO_THE_END, harmless=(0.5, 1.0)),
    Flag("train_text_encoder_frac", "float", refused=_TO_THE_END, harmless=(1.0,)),
    Flag("train_transformer_frac", "float", refused=_TO_THE_END, harmless=(1.0,)),
    Flag("enable_t5_ti", "switch", refused="T5 is not trained"),
    # The objective.
    Flag(
        "weighting_scheme",
        "text",
        "objective.timestep_bias, objective.weighting",
        act=actions.weighting_scheme,
        choices=("sigma_sqrt", "logit_normal", "mode", "cosmap", "none"),
    ),
    Flag("logit_mean", "float", "objective.logit_mean"),
    Flag("logit_std", "float", "objective.logit_std"),
    Flag("mode_scale", "float", "objective.mode_scale"),
    Flag(
        "precondition_outputs",
        "int",
        "objective.weighting",
        act=actions.precondition_outputs,
        choices=(0, 1),
    ),
    Flag("guidance_scale", "float", "base.guidance", act=actions.embedded_guidance),
    Flag(
        "snr_gamma", "float", "objective.weighting, objective.min_snr_gamma", act=actions.snr_gamma
    ),
    Flag("offset_noise", "switch", "objective.noise_offset", either=(0.1, 0.0)),
    Flag("noise_offset", "float", "objective.noise_offset"),
    Flag("do_edm_style_training", "switch", refused="the EDM objective is not implemented"),
    # The optimizer. 8-bit comes before the optimizer's name, which may overrule it.
    Flag("learning_rate", "float", "optim.learning_rate"),
    Flag("text_encoder_lr", "float", "optim.text_encoder_lr"),
    Flag("scale_lr", "switch", "optim.scale_lr"),
    Flag("lr_scheduler", "text", "optim.lr_scheduler"),
    Flag(
        "lr_warmup_steps",
        "int",
        "optim.lr_warmup_steps",
        "with constant, which has none, 0",
        cross=True,
    ),
    Flag("lr_num_cycles", "float", "optim.lr_num_cycles", "with cosine_with_restarts", cross=True),
    Flag("lr_power", "float", "optim.lr_power"),
    Flag("use_8bit_adam", "switch", "optim.optimizer", act=actions.eight_bit),
    Flag("optimizer", "text", "optim.optimizer", act=actions.optimizer),
    Flag("adam_beta1", "float", "optim.beta1"),
    Flag("adam_beta2", "float", "optim.beta2"),
    Flag("adam_weight_decay", "float", "optim.weight_decay"),
    Flag("adam_weight_decay_text_encoder", "float", "optim.text_weight_decay"),
    Flag("adam_epsilon", "float", "optim.epsilon"),
    *(
        Flag(f"prodigy_{name}", kind, "optim.optimizer_args", name, actions.prodigy_argument(name))
        for name, kind in PRODIGY.items()
    ),
    Flag("max_grad_norm", "float", "optim.max_grad_norm", act=actions.max_grad_norm),
    # Memory and precision.
    Flag("gradient_checkpointing", "switch", "memory.gradient_checkpointing"),
    Flag(
        "enable_xformers_memory_efficient_attention",
        "switch",
        "memory.attention",
        act=actions.xformers,
    ),
    Flag("allow_tf32", "switch", "memory.tf32", act=actions.tf32),
    Flag(
        "mixed_precision",
        "text",
        "run.mixed_precision",
        act=actions.mixed_precision,
        choices=PRECISIONS,
    ),
    Flag("upcast_before_saving", "switch", "save.precision", act=actions.upcast_before_saving),
    Flag("bnb_quantization_config_path", "text", "memory.quantize", act=actions.quantization),
    Flag("do_fp8_training", "switch", refused="the base is kept in 8 or 4 bits by bitsandbytes"),
    Flag("enable_npu_flash_attention", "switch", refused="Ascend NPUs are not supported"),
    Flag("enable_vae_tiling", "switch", how="images are decoded one after another"),
    Flag("offload", "switch", how="networks come to the device one after another"),
    Flag("fsdp_text_encoder", "switch", how="text encoders leave the device before training"),
    Flag(
        "remote_text_encoder", "switch", how="prompts are encoded here, by the base's own encoder"
    ),
    Flag("set_grads_to_none", "switch", how="always so"),
    Flag("pre_compute_text_embeddings", "switch", how="always so, unless text encoders learn"),
    Flag("dataloader_num_workers", "int", how="images are encoded once, nothing is left to load"),
    Flag("num_dataloader_workers", "int", how="images are encoded once, nothing is left to load"),
    Flag("no_tracemalloc", "switch", how="memory is not traced"),
    Flag("local_rank", "int", how="the launcher tells each process its place"),
    # The run.
    Flag("output_dir", "text", "run.output, run.name", cross=True),
    Flag("seed", "int", "run.seed, validation.seed", "without it 0", cross=True),
    Flag("train_batch_size", "int", "run.batch_size"),
    Flag("gradient_accumulation_steps", "int", "run.gradient_accumulation_steps"),
    Flag("max_train_steps", "int", "run.steps"),
    Flag(
        "num_train_epochs",
        "int",
        "run.epochs, run.steps",
        "an epoch ends when all images, class images too, were seen",
        cross=True,
    ),
    Flag("checkpointing_steps", "int", "save.every_steps"),
    Flag("save_interval", "int", "save.every_steps"),
    Flag("save_steps", "int", "save.every_steps"),
    Flag("save_min_steps", "int", "save.first_step"),
    Flag("checkpoints_total_limit", "int", "save.keep"),
    Flag("resume_from_checkpoint", "text", "run.resume", act=actions.resume),
    Flag("output_kohya_format", "switch", "save.also_kohya"),
    Flag("skip_save_text_encoder", "switch", refused=_IF_ONLY),
    # Watching.
    Flag("validation_prompt", "text", "validation.prompts", act=actions.validation_prompt),
    Flag("num_validation_images", "int", "validation.images"),
    Flag("final_validation_prompt", "text", "validation.prompts", act=actions.final_prompt),
    Flag("skip_final_inference", "switch", how="images are made only where a prompt asks for them"),
    Flag("validation_num_inference_steps", "int", "validation.num_inference_steps"),
    Flag(
        "validation_guidance_scale",
        "float",
        "validation.guidance_scale",
        act=actions.validation_guidance,
    ),
    Flag("validation_model_path", "text", refused="images are made by the base that is trained"),
    Flag("validation_steps", "int", "validation.every_steps"),
    Flag("validation_epochs", "int", "validation.every_steps", "times steps an epoch", cross=True),
    Flag(
        "validation_scheduler",
        "text",
        "validation.scheduler",
        act=actions.validation_scheduler,
        choices=("DPMSolverMultistepScheduler", "DDPMScheduler"),
    ),
    Flag("save_sample_prompt", "text", "validation.prompts", act=actions.sample_prompt),
    Flag("save_sample_negative_prompt", "text", "validation.negative_prompt"),
    Flag("n_save_sample", "int", "validation.images"),
    Flag("save_guidance_scale", "float", "validation.guidance_scale"),
    Flag("save_infer_steps", "int", "validation.num_inference_steps"),
    Flag("log_interval", "int", "log.every_steps"),
    Flag("logging_dir", "text", "log.folder"),
    Flag("report_to", "text", "log.tensorboard, log.wandb", act=actions.report_to),
    Flag("writer_type", "text", "log.tensorboard", "TensorBoard or none", actions.report_to),
    Flag("wandb_key", "text", act=actions.wandb_key),
    Flag("wandb_project_name", "text", "log.project"),
    Flag("push_to_hub", "switch", "publish.repository", act=actions.push_to_hub),
    Flag("hub_model_id", "text", "publish.repository", act=actions.hub_model_id),
    Flag("hub_token", "text", act=actions.hub_token),
    Flag("hub_licence", "text", "publish.licence"),
    Flag("hub_consent", "text", "publish.consent"),
    # What other models than Stable Diffusion need.
    Flag("max_sequence_length", "int", how=_OWN_TEXT),
    Flag(
        "text_encoder_out_layers",
        "texts",
        refused=_OWN_TEXT,
        harmless=(["10", "20", "30"], ["9", "18", "27"]),
    ),
    Flag("system_prompt", "text", refused=_OWN_TEXT),
    Flag("upsample_prompt", "switch", refused="captions are read as they are written"),
    Flag("prompt_enhancer_head_id", "text", how="it is for --upsample_prompt"),
    Flag(
        "disable_training_autocast",
        "switch",
        how="the places of tokens, which half precision blurs, are counted in fp32",
    ),
    Flag("complex_human_instruction", "text", refused=_OWN_TEXT),
    Flag("clip_skip", "int", refused=_OWN_TEXT),
    Flag("pretrained_tokenizer_4_name_or_path", "text", how=_LLAMA),
    Flag("pretrained_text_encoder_4_name_or_path", "text", how=_LLAMA),
    Flag("tokenizer_max_length", "int", refused=_IF_ONLY, harmless=(77,)),
    Flag("text_encoder_use_attention_mask", "switch", refused=_IF_ONLY),
    Flag("validation_images", "texts", refused=_IF_ONLY),
    Flag("class_labels_conditioning", "text", refused=_IF_ONLY),
)

BY_NAME = {flag.name: flag for flag in FLAGS}


def flags_of(script: str) -> list[Flag]:
    """Those that any dialect of a script has, in the table's order."""
    names = {name for dialect in dialects_of(script) for name in dialect.defaults}
    return [flag for flag in FLAGS if flag.name in names]
