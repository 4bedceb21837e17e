"""Whose flags they are, which defaults apply, and what becomes of what this machine cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny import draw_pictures

from dreambooth_core.compat.dialects import script_of
from dreambooth_core.compat.draft import Draft
from dreambooth_core.compat.machine import Machine
from dreambooth_core.compat.translate import translate
from dreambooth_core.config.loading import dump
from dreambooth_core.errors import Unsupported, UserError

LEAST = (
    "--pretrained_model_name_or_path=pocket",
    "--instance_data_dir=pictures",
    "--instance_prompt=a photo of sks dog",
    "--max_train_steps=400",
)


class Rich(Machine):
    """A machine that can do everything."""

    device = "cuda"
    refuses_8bit = ""
    refuses_xformers = ""
    refuses_wandb = ""

    def refuses_precision(self, name: str) -> str:
        return ""


class Poor(Machine):
    """A machine with nothing but a CPU."""

    device = "cpu"
    refuses_8bit = "bitsandbytes is not installed"
    refuses_xformers = "xformers is not installed"
    refuses_wandb = "no wandb here"


def typed(*flags: str, script: str = "train_dreambooth", on: Any = Poor) -> Draft:
    return translate(script, [*LEAST, *flags], on())


PEFT = [
    "--use_lora",
    "--lora_r=16",
    "--lora_alpha=27",
    "--lora_text_encoder_r=16",
    "--lora_text_encoder_alpha=17",
    "--num_dataloader_workers=1",
]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], "diffusers"),
        (["--checkpointing_steps=100", "--snr_gamma=5.0"], "diffusers"),
        (["--save_interval=10", "--pretrained_vae_name_or_path=pictures"], "shivam"),
        (["--hflip"], "shivam"),
        (PEFT, "peft"),
        (["--height=512", "--width=512"], "ppdiffusers"),
        (["--random_flip"], "ppdiffusers"),
        (["--report_to=visualdl"], "ppdiffusers"),
        (["--report_to", "tensorboard"], "diffusers"),
    ],
)
def test_the_flags_tell_the_dialect(flags: list[str], name: str) -> None:
    found = typed(*flags)
    assert found.dialect.name == name
    assert f"{found.dialect.whose} dialect" in found.headline
    given = {flag.split("=")[0].strip("-") for flag in flags if flag.startswith("--")}
    told = {flag.split(" ")[0] for flag in found.telling}
    assert told <= given
    assert bool(told) == (name != "diffusers")


def test_a_flag_of_another_dialect_is_taken_and_named() -> None:
    found = typed(*PEFT, "--snr_gamma=5")
    assert found.dialect.name == "peft"
    assert found.config.objective.weighting == "min_snr"
    assert any("--snr_gamma: a flag of diffusers' dialect" in note for note in found.notes)


def test_defaults_of_the_dialects() -> None:
    config = typed().config
    assert config.method.kind == "full"
    assert config.optim.learning_rate == 5e-6
    assert config.optim.weight_decay == 0.01
    assert config.optim.max_grad_norm == 1.0
    assert config.run.batch_size == 4
    assert config.save.every_steps == 500
    assert (config.data.crop, config.data.captions) == ("random", "prompt")
    assert typed().folder.name == "dreambooth-model"

    paddle = typed("--random_flip")
    assert paddle.config.optim.weight_decay == 0.02
    assert paddle.config.optim.max_grad_norm == 0.0
    assert paddle.folder.name == "dreambooth-model"
    assert paddle.config.log.tensorboard
    assert any("VisualDL is not written to; TensorBoard" in note for note in paddle.notes)

    shivam = typed("--hflip")
    assert shivam.config.save.every_steps == 10_000
    assert shivam.config.log.every_steps == 10
    assert shivam.config.save.arrangement == "shivam"
    assert shivam.folder.parts[-2:] == ("text-inversion-model", "0")

    peft = typed(*PEFT).config
    assert (peft.method.kind, peft.method.target_modules) == ("lora", "query_value")
    assert (peft.method.rank, peft.method.alpha) == (16, 27)
    assert (peft.method.text_rank, peft.method.text_alpha) == (16, 17)
    assert typed("--use_lora").config.method.alpha == 32

    lora = typed(script="train_dreambooth_lora").config
    assert (lora.method.kind, lora.method.target_modules) == ("lora", "attention")
    assert (lora.method.rank, lora.method.alpha) == (4, 4)
    assert lora.optim.learning_rate == 5e-4

    xl = typed("--rank=8", "--use_dora", script="train_dreambooth_lora_sdxl").config
    assert (xl.method.kind, xl.method.rank, xl.method.alpha) == ("dora", 8, 8)
    assert xl.data.resolution == 1024
    assert xl.optim.learning_rate == 1e-4
    assert xl.optim.text_encoder_lr == 5e-6
    assert (xl.optim.weight_decay, xl.optim.text_weight_decay) == (1e-4, 1e-3)


def test_paddles_rank_by_either_name() -> None:
    for flag in ("--lora_rank=6", "--rank=6"):
        found = typed(flag, "--random_flip", script="train_dreambooth_lora")
        assert found.dialect.name == "ppdiffusers"
        assert (found.config.method.rank, found.config.method.alpha) == (6, 6)


def test_what_the_machine_cannot_do_is_replaced_with_a_warning() -> None:
    flags = (
        "--mixed_precision=fp16",
        "--prior_generation_precision=fp16",
        "--use_8bit_adam",
        "--enable_xformers_memory_efficient_attention",
        "--allow_tf32",
    )
    poor = typed(*flags)
    assert poor.config.run.mixed_precision == "no"
    assert poor.config.prior.precision == "fp32"
    assert poor.config.optim.optimizer == "adamw"
    assert poor.config.memory.attention == "auto"
    assert not poor.config.memory.tf32
    warned = {warning.split(":")[0] for warning in poor.warnings}
    assert warned == {flag.split("=")[0] for flag in flags}

    rich = typed(*flags, on=Rich)
    assert rich.config.run.mixed_precision == "fp16"
    assert rich.config.prior.precision == "fp16"
    assert rich.config.optim.optimizer == "adamw8bit"
    assert rich.config.memory.tf32
    assert rich.warnings == []


def test_trackers() -> None:
    peft = ("--use_lora", "--report_to=wandb", "--wandb_key=secret", "--wandb_project_name=pets")
    rich = typed(*peft, on=Rich)
    assert (rich.config.log.wandb, rich.config.log.tensorboard) == (True, False)
    assert rich.config.log.project == "pets"
    assert rich.secrets == {"WANDB_API_KEY": "secret"}
    assert "secret" not in dump(rich.config) + repr(rich)
    poor = typed(*peft)
    assert (poor.config.log.wandb, poor.config.log.tensorboard) == (False, True)
    assert any("--report_to: no wandb here; TensorBoard" in w for w in poor.warnings)
    assert poor.secrets == {}
    both = typed("--report_to=all", on=Rich).config.log
    assert (both.wandb, both.tensorboard) == (True, True)
    assert typed("--report_to=all").warnings == []
    assert not typed("--report_to=none").config.log.tensorboard
    assert any("comet_ml is not written to" in w for w in typed("--report_to=comet_ml").warnings)


def test_the_hub() -> None:
    ours = ("--hub_licence=mit", "--hub_consent=nobody had to agree")
    full = ("--push_to_hub", "--hub_model_id=me/dog", "--hub_token=secret", *ours)
    found = typed(*full)
    publish = found.config.publish
    assert (publish.repository, publish.licence) == ("me/dog", "mit")
    assert publish.consent == "nobody had to agree" and publish.private
    assert found.secrets == {"HF_TOKEN": "secret"}
    assert "secret" not in dump(found.config) + repr(found) + "".join(found.notes)
    assert found.warnings == []
    assert typed("--push_to_hub", *ours).config.publish.repository == "dreambooth-model"


def test_the_hub_without_what_it_needs() -> None:
    found = typed("--push_to_hub", "--hub_model_id=me/dog", "--hub_token=secret")
    assert found.config.publish.repository == ""
    assert found.secrets == {}
    assert any("--hub_licence and --hub_consent" in w for w in found.warnings)
    assert any("hf upload me/dog dreambooth-model" in w for w in found.warnings)
    notes = typed("--hub_model_id=me/dog", "--hub_token=secret").notes
    assert any("--hub_model_id: nothing without --push_to_hub" in note for note in notes)
    assert any("--hub_token: not needed" in note for note in notes)


def test_accelerates_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert typed().config.run.mixed_precision == "bf16"
    assert typed("--mixed_precision=no").config.run.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert typed().config.run.mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert typed().config.run.device == "cpu"
    assert Machine().device == "cpu"


def test_schedules_as_there() -> None:
    assert typed().config.optim.lr_warmup_steps == 0  # constant ignores the 500
    warm = typed("--lr_scheduler=linear")
    assert warm.config.optim.lr_warmup_steps == 500
    told = typed("--lr_warmup_steps=9").notes
    assert any("--lr_warmup_steps: nothing with --lr_scheduler constant" in n for n in told)
    restarts = typed("--lr_scheduler=cosine_with_restarts", "--lr_num_cycles=3")
    assert restarts.config.optim.lr_num_cycles == 3
    cosine = typed("--lr_scheduler=cosine", "--lr_num_cycles=3")
    assert cosine.config.optim.lr_num_cycles is None
    assert any("--lr_num_cycles" in note for note in cosine.notes)


def test_prodigy() -> None:
    script = "train_dreambooth_lora_sdxl"
    flags = ("--optimizer=prodigy", "--prodigy_decouple=false", "--prodigy_beta3=0.9")
    found = typed(*flags, "--learning_rate=1.0", "--train_text_encoder", script=script)
    assert found.config.optim.optimizer == "prodigy"
    assert found.config.optim.optimizer_args["decouple"] == "false"
    assert found.config.optim.optimizer_args["beta3"] == "0.9"
    assert found.config.optim.text_encoder_lr is None
    assert found.warnings == []
    slow = typed("--optimizer=prodigy", script=script)
    assert slow.config.optim.learning_rate == 1.0
    assert any("too little for Prodigy" in warning for warning in slow.warnings)
    plain = typed("--prodigy_decouple=false", script=script)
    assert plain.config.optim.optimizer_args == {}
    assert any("--prodigy_decouple: nothing without" in note for note in plain.notes)


def test_an_epoch_is_as_long_as_there(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures", 5)
    (pictures / "deeper").mkdir()
    draw_pictures(pictures / "deeper", 2)  # these scripts do not look into folders
    common = [
        "--pretrained_model_name_or_path=pocket",
        f"--instance_data_dir={pictures}",
        "--instance_prompt=a ball",
        "--train_batch_size=2",
        "--gradient_accumulation_steps=2",
        "--num_train_epochs=3",
    ]
    found = translate("train_dreambooth_lora", common, Poor())
    assert found.config.run.steps == 6  # 5 pictures, 3 batches, 2 steps, 3 epochs
    prior = ["--with_prior_preservation", "--class_prompt=a ball", "--num_class_images=20"]
    watched = ["--validation_prompt=a ball", "--validation_epochs=2"]
    longer = translate("train_dreambooth_lora", [*common, *prior, *watched], Poor())
    assert longer.config.run.steps == 15  # 20 class images, 10 batches, 5 steps, 3 epochs
    assert longer.config.validation.every_steps == 10
    several = translate("train_dreambooth_lora", common, type("Two", (Poor,), {"processes": 2})())
    assert several.config.run.steps == 3


def test_concepts_list(tmp_path: Path) -> None:
    listed = tmp_path / "concepts_list.json"
    concept = {"instance_prompt": "photo of zwx dog", "instance_data_dir": "data/zwx"}
    listed.write_text(json.dumps([concept, {**concept, "instance_prompt": "photo of ukj cat"}]))
    found = typed(f"--concepts_list={listed}")
    prompts = [each.instance_prompt for each in found.config.concepts]
    assert prompts == ["photo of zwx dog", "photo of ukj cat"]
    assert all(Path(each.images).is_absolute() for each in found.config.concepts)
    assert any("--instance_prompt: --concepts_list says it" in note for note in found.notes)


def test_captions_come_from_files_only_where_asked() -> None:
    assert typed("--hflip").config.data.captions == "prompt"
    assert typed("--read_prompts_from_txts").config.data.captions == "files"


@pytest.mark.parametrize(
    ("text", "resume"),
    [("latest", "latest"), ("checkpoint-500", "500"), ("out/checkpoint-500", "500")],
)
def test_resuming(text: str, resume: str) -> None:
    assert typed(f"--resume_from_checkpoint={text}").config.run.resume == resume


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UserError, match="names no checkpoint"):
        typed("--resume_from_checkpoint=somewhere")
    with pytest.raises(UserError, match="--tokenizer_name"):
        typed("--tokenizer_name=other/words")
    assert typed("--tokenizer_name=pocket").config.base.model == "pocket"
    with pytest.raises(UserError, match="--image_interpolation_mode"):
        typed("--image_interpolation_mode=nearest", script="train_dreambooth_lora")
    with pytest.raises(Unsupported, match=r"--lora_bias: no host .*; --lora_text_encoder_bias"):
        typed("--use_lora", "--lora_bias=all", "--lora_text_encoder_bias=all")


def test_scripts_by_name() -> None:
    assert script_of("train_dreambooth") == "train_dreambooth"
    assert script_of("examples/dreambooth/train_dreambooth_lora.py") == "train_dreambooth_lora"
    assert script_of(r"scripts\train_dreambooth.py") == "train_dreambooth"
    with pytest.raises(Unsupported, match=r"TPUs are not supported"):
        script_of("train_dreambooth_flax")
    with pytest.raises(UserError, match="Did you mean train_dreambooth_lora_sdxl"):
        script_of("train_dreambooth_lora_sdx")


def test_native_options_behind_flags() -> None:
    found = typed(
        "--offset_noise",
        "--center_crop",
        "--validation_prompt=a dog",
        "--validation_scheduler=DDPMScheduler",
        "--max_grad_norm=-1",
        "--seed=9",
        "--output_dir=some/where",
    )
    config = found.config
    assert config.objective.noise_offset == 0.1
    assert config.data.crop == "center"
    assert config.validation.prompts == ["a dog"]
    assert config.validation.every_steps == 100
    assert config.validation.scheduler == "ddim"
    assert any("--validation_scheduler" in warning for warning in found.warnings)
    assert config.optim.max_grad_norm == 0
    assert (config.run.seed, config.validation.seed) == (9, 9)
    assert Path(config.run.output).name == "some"
    assert config.run.name == "where"
