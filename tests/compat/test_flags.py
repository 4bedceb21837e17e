"""The table of flags: complete, without contradictions, and each flag does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.compat import conversions
from dreambooth_core.compat.dialects import COMMON, DIALECTS, LATER, Dialect
from dreambooth_core.compat.flags import BY_NAME, FLAGS, Flag
from dreambooth_core.compat.table import page
from dreambooth_core.compat.translate import read_flags, translate
from dreambooth_core.config.describe import flatten
from dreambooth_core.disk.reading import parse_json
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.options import TrainConfig

SHARED = """pretrained_model_name_or_path instance_data_dir class_data_dir instance_prompt
class_prompt with_prior_preservation prior_loss_weight num_class_images output_dir seed resolution
center_crop train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler
lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub
hub_token hub_model_id logging_dir"""
HUGGING_FACE = f"""{SHARED} revision variant validation_prompt num_validation_images
checkpointing_steps checkpoints_total_limit resume_from_checkpoint lr_num_cycles lr_power
use_8bit_adam allow_tf32 report_to mixed_precision prior_generation_precision local_rank
enable_xformers_memory_efficient_attention dataloader_num_workers"""
PEERS = {
    ("train_dreambooth", "diffusers"): f"""{HUGGING_FACE} tokenizer_name validation_steps
        set_grads_to_none offset_noise snr_gamma pre_compute_text_embeddings tokenizer_max_length
        text_encoder_use_attention_mask skip_save_text_encoder validation_images
        class_labels_conditioning validation_scheduler""",
    ("train_dreambooth", "shivam"): f"""{SHARED} revision tokenizer_name use_8bit_adam
        mixed_precision local_rank concepts_list pretrained_vae_name_or_path save_interval
        save_min_steps save_sample_prompt save_sample_negative_prompt n_save_sample
        save_guidance_scale save_infer_steps pad_tokens hflip not_cache_latents
        read_prompts_from_txts log_interval""",
    ("train_dreambooth", "peft"): f"""{SHARED} revision tokenizer_name validation_prompt
        num_validation_images validation_steps use_lora lora_r lora_alpha lora_dropout lora_bias
        lora_text_encoder_r lora_text_encoder_alpha lora_text_encoder_dropout
        lora_text_encoder_bias num_dataloader_workers no_tracemalloc checkpointing_steps
        resume_from_checkpoint lr_num_cycles lr_power use_8bit_adam allow_tf32 report_to wandb_key
        wandb_project_name mixed_precision prior_generation_precision local_rank
        enable_xformers_memory_efficient_attention""",
    ("train_dreambooth", "ppdiffusers"): f"""{SHARED} tokenizer_name height width random_flip
        lr_num_cycles lr_power dataloader_num_workers report_to checkpointing_steps
        enable_xformers_memory_efficient_attention noise_offset""",
    ("train_dreambooth_lora", "diffusers"): f"""{HUGGING_FACE} tokenizer_name validation_epochs
        pre_compute_text_embeddings tokenizer_max_length text_encoder_use_attention_mask
        validation_images class_labels_conditioning rank lora_dropout image_interpolation_mode""",
    ("train_dreambooth_lora", "ppdiffusers"): f"""{SHARED} tokenizer_name validation_prompt
        num_validation_images validation_epochs height width random_flip lora_rank rank
        checkpointing_steps lr_num_cycles lr_power dataloader_num_workers report_to noise_offset
        enable_xformers_memory_efficient_attention pre_compute_text_embeddings
        tokenizer_max_length text_encoder_use_attention_mask validation_images
        class_labels_conditioning""",
    ("train_dreambooth_lora_sdxl", "diffusers"): f"""{HUGGING_FACE} validation_epochs
        pretrained_vae_model_name_or_path dataset_name dataset_config_name cache_dir image_column
        caption_column repeats do_edm_style_training output_kohya_format random_flip
        text_encoder_lr snr_gamma optimizer prodigy_beta3 prodigy_decouple
        adam_weight_decay_text_encoder prodigy_use_bias_correction prodigy_safeguard_warmup rank
        lora_dropout use_dora image_interpolation_mode""",
}
"""What the scripts' own parsers take."""
LATER_PEERS = parse_json((Path(__file__).parent / "peers.json").read_bytes())
"""The same of diffusers' later scripts, with their defaults."""

OURS = {"writer_type", "save_steps", "hub_licence", "hub_consent"}
"""What they do not take and we do."""

VALUES: dict[str, Any] = {
    "text": "words",
    "int": 7,
    "float": 0.25,
    "switch": True,
    "truth": True,
    "texts": ["one", "two"],
}
SPECIAL: dict[str, Any] = {
    "lr_scheduler": "cosine",
    "resolution": 128,
    "height": 128,
    "width": 192,
    "adam_epsilon": 1e-6,
}
LEAST = {
    "pretrained_model_name_or_path": "pocket",
    "instance_data_dir": "pictures",
    "instance_prompt": "a photo of sks ball",
    "max_train_steps": 5,
}


def words(**given: Any) -> list[str]:
    """A command line."""
    found = []
    for name, value in {**LEAST, **given}.items():
        if value is True:
            found.append(f"--{name}")
        elif isinstance(value, list):
            found += [f"--{name}", *value]
        else:
            found.append(f"--{name}={value}")
    return found


@pytest.mark.parametrize("dialect", LATER, ids=lambda d: d.script)
def test_later_scripts_have_the_flags_and_defaults_of_their_peers(dialect: Dialect) -> None:
    theirs = LATER_PEERS[dialect.script]
    ours = {name: value for name, value in dialect.defaults.items() if name not in OURS}
    assert ours.keys() == theirs.keys()
    assert {n: v or None for n, v in ours.items()} == {n: v or None for n, v in theirs.items()}
    assert ours.keys() <= BY_NAME.keys()
    assert len(LATER_PEERS) == len(LATER)


@pytest.mark.parametrize(
    "dialect", [d for d in DIALECTS if d not in LATER], ids=lambda d: f"{d.script}-{d.name}"
)
def test_every_flag_of_the_peers_is_in_the_table(dialect: Dialect) -> None:
    theirs = set(PEERS[dialect.script, dialect.name].split())
    assert theirs <= set(dialect.defaults)
    assert set(dialect.defaults) - theirs <= OURS
    assert set(dialect.defaults) <= set(BY_NAME)
    assert set(Dialect("", COMMON).defaults) <= set(dialect.defaults) | {"tokenizer_name"}


def test_the_table_does_not_contradict_itself() -> None:
    assert len(BY_NAME) == len(FLAGS)
    known = set(flatten(TrainConfig())) | {"optim.optimizer_args", "concepts", "validation.prompts"}
    for flag in FLAGS:
        assert flag.verdict != "nothing" or flag.how, flag.name
        assert not (flag.refused and (flag.key or flag.act)), flag.name
        for key in flag.key.split(", ") if flag.key else []:
            assert key in known or key.startswith("concepts[0]."), flag.name
    for dialect in DIALECTS:
        assert set(dialect.fixed) <= known


SIMPLE = [f for f in FLAGS if f.key and not (f.act or f.cross or f.either)]


@pytest.mark.parametrize("flag", SIMPLE, ids=lambda f: f.name)
def test_a_flag_sets_its_key(flag: Flag) -> None:
    value = SPECIAL.get(flag.name, VALUES[flag.kind])
    dialect = next(d for d in DIALECTS if flag.name in d.defaults)
    given = {"class_prompt": "a ball", flag.name: value}
    config = translate(dialect.script, words(**given)).config
    holder: Any = config.concepts[0] if flag.key.startswith("concepts[0].") else config
    for part in flag.key.removeprefix("concepts[0].").split("."):
        holder = getattr(holder, part)
    if flag.key.endswith(("images", "class_images")) and flag.key.startswith("concepts"):
        holder = holder.replace("\\", "/").rsplit("/", 1)[-1]
    if flag.key == "validation.every_steps":
        # Without a prompt no images are made.
        assert holder is None
        more = words(**given, validation_prompt="a ball")
        holder = translate(dialect.script, more).config.validation.every_steps
    assert holder == value


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.either], ids=lambda f: f.name)
def test_a_switch_says_one_of_two(flag: Flag) -> None:
    dialect = next(d for d in DIALECTS if flag.name in d.defaults)
    for given, wanted in zip((True, False), flag.either or (), strict=True):
        config = translate(dialect.script, words(**({flag.name: True} if given else {}))).config
        section, name = flag.key.split(".")
        assert getattr(getattr(config, section), name) == wanted


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.refused], ids=lambda f: f.name)
def test_a_refused_flag_is_named_with_the_reason(flag: Flag) -> None:
    dialect = next(d for d in DIALECTS if flag.name in d.defaults)
    with pytest.raises(Unsupported) as caught:
        translate(dialect.script, words(**{flag.name: VALUES[flag.kind]}))
    assert f"--{flag.name}: {flag.refused}" in caught.value.line
    for value in flag.harmless:
        translate(dialect.script, words(**{flag.name: value}))


@pytest.mark.parametrize("flag", [f for f in FLAGS if f.verdict == "nothing"], ids=lambda f: f.name)
def test_a_flag_without_meaning_says_so(flag: Flag) -> None:
    dialect = next(d for d in DIALECTS if flag.name in d.defaults)
    given = translate(dialect.script, words(**{flag.name: VALUES[flag.kind]}))
    assert f"--{flag.name}: {flag.how}" in given.notes
    assert f"--{flag.name}: {flag.how}" not in translate(dialect.script, words()).notes


def test_an_unknown_flag_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--learning_rat: .*Did you mean --learning_rate\?"):
        read_flags("train_dreambooth", ["--learning_rat=1"])
    with pytest.raises(UserError, match=r"--text_encoder_lr: .*Other scripts have it"):
        read_flags("train_dreambooth", ["--text_encoder_lr=1"])
    with pytest.raises(UserError, match="belongs to no flag"):
        read_flags("train_dreambooth", ["stray"])


def test_wrong_values_are_refused_by_the_flags_name() -> None:
    with pytest.raises(UserError, match="--rank"):
        read_flags("train_dreambooth_lora", ["--rank=many"])
    with pytest.raises(UserError, match=r"--prior_loss_weight.*too small"):
        translate("train_dreambooth", words(prior_loss_weight=-1))
    with pytest.raises(UserError, match="--mixed_precision"):
        read_flags("train_dreambooth", ["--mixed_precision=fp8"])
    with pytest.raises(UserError, match="--prodigy_decouple"):
        read_flags("train_dreambooth_lora_sdxl", ["--prodigy_decouple=perhaps"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="--pretrained_model_name_or_path, --instance_data_dir"):
        translate("train_dreambooth", ["--instance_prompt=a ball"])
    with pytest.raises(UserError, match="--class_prompt must be given"):
        translate("train_dreambooth", words(with_prior_preservation=True))


def test_the_page_is_in_step_with_the_table() -> None:
    written = Path(__file__).parents[2] / "docs" / "compat.md"
    assert written.read_text(encoding="utf-8") == page()
    for flag in FLAGS:
        assert f"`--{flag.name}`" in page()


def test_conversion_flags() -> None:
    theirs = {
        conversions.TO_DIFFUSERS: """checkpoint_path original_config_file config_files
            num_in_channels scheduler_type pipeline_type image_size prediction_type extract_ema
            upcast_attention from_safetensors to_safetensors dump_path device stable_unclip
            stable_unclip_prior clip_stats_path controlnet half vae_path pipeline_class_name""",
        conversions.TO_ORIGINAL: "model_path checkpoint_path half use_safetensors",
    }
    for script, names in theirs.items():
        assert {f.name for f in conversions.FLAGS[script]} == set(names.split())
