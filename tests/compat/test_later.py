"""diffusers' scripts for rectified-flow models, run on tiny models of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from helpers.flow_bases import WRITERS
from safetensors import safe_open

from dreambooth_core.compat.draft import Draft
from dreambooth_core.compat.translate import translate
from dreambooth_core.errors import Unsupported, UserError

LORA = "pytorch_lora_weights.safetensors"
LAYERS = {
    "z_image": "noise_refiner.0.attention.to_k",
    "flux2_klein": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "flux2": "single_transformer_blocks.1.attn.to_out",
    "flux": "transformer_blocks.0.ff_context.net.2",
    "qwen_image": "transformer_blocks.0.attn.to_out.0",
    "krea2": "text_fusion.projector",
    "lumina2": "noise_refiner.0.attn.to_q",
    "ideogram4": "layers.0.feed_forward.w2",
    "hidream": "single_stream_blocks.0.block.attn1.to_out",
    "sana": "transformer_blocks.0.attn2.to_k",
    "sd3": "transformer_blocks.0.attn.add_k_proj",
}
"""A layer that each script adapts, by its default, beside the others."""


def line(**given: Any) -> list[str]:
    values = {
        "pretrained_model_name_or_path": "base",
        "instance_data_dir": "images",
        "instance_prompt": "a photo of sks ball",
        "max_train_steps": 2,
        **given,
    }
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]


def meant(script: str, **given: Any) -> Draft:
    return translate(f"train_dreambooth_{script}", line(**given))


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_lies_and_loads_as_the_scripts_do(name: str, typed: Any, tmp_path: Path) -> None:
    base = WRITERS["flux2_dev" if name == "flux2" else name](tmp_path / "base")
    out = typed(
        f"train_dreambooth_lora_{name}",
        pretrained_model_name_or_path=base,
        max_train_steps=2,
        checkpointing_steps=1,
    )
    with safe_open(out / LORA, framework="np") as file:
        keys = set(file.keys())
    assert f"transformer.{LAYERS[name]}.lora_A.weight" in keys
    assert all(key.startswith("transformer.") for key in keys)
    assert (out / "checkpoint-1" / LORA).is_file()
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(out)
    taken = {n for n, _ in pipeline.transformer.named_parameters() if ".lora_A." in n}
    assert len(taken) == len(keys) // 2


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_full_fine_tune_is_a_pipeline(name: str, typed: Any, tmp_path: Path) -> None:
    base = WRITERS[name](tmp_path / "base")
    """With the denoiser alone at each checkpoint."""
    out = typed(
        f"train_dreambooth_{name}",
        pretrained_model_name_or_path=base,
        max_train_steps=2,
        checkpointing_steps=1,
    )
    assert (out / "checkpoint-1" / "transformer" / "config.json").is_file()
    pipeline = DiffusionPipeline.from_pretrained(out)
    assert type(pipeline) is type(DiffusionPipeline.from_pretrained(base))


def test_the_weighting_schemes() -> None:
    def said(script: str = "lora_flux", **given: Any) -> tuple[str, str]:
        objective = meant(script, **given).config.objective
        return objective.timestep_bias, objective.weighting

    assert said() == ("none", "none")
    assert said(weighting_scheme="logit_normal") == ("logit_normal", "none")
    assert said(weighting_scheme="mode") == ("mode", "none")
    assert said(weighting_scheme="sigma_sqrt") == ("none", "sigma_sqrt")
    assert said(weighting_scheme="cosmap") == ("none", "cosmap")
    # What SD3's scripts precondition is the loss between images: squared shares of noise.
    assert said("lora_sd3") == ("logit_normal", "sigma_squared")
    assert said("lora_sd3", precondition_outputs=0) == ("logit_normal", "none")
    assert said("lora_sd3", weighting_scheme="sigma_sqrt") == ("none", "none")
    cosmap = meant("lora_sd3", weighting_scheme="cosmap")
    assert any("not together with cosmap" in warning for warning in cosmap.warnings)


def test_guidance_is_told_to_bases_that_take_it(tmp_path: Path) -> None:
    """Whatever the flag says or defaults to, as in the scripts, which ask the denoiser."""
    for told in (True, False):
        config = tmp_path / str(told) / "transformer" / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"guidance_embeds": told}), encoding="utf-8")

    def said(model: object, **given: Any) -> float:
        return meant("lora_flux", pretrained_model_name_or_path=model, **given).config.base.guidance

    assert said(tmp_path / "True") == said("black-forest-labs/FLUX.1-dev") == 3.5
    assert said(tmp_path / "True", guidance_scale=1) == 1.0
    assert said(tmp_path / "False") == said("black-forest-labs/FLUX.1-schnell") == 1.0


def test_the_last_step_has_a_checkpoint_where_it_is_due() -> None:
    """So that a finished run can be gone on with from there, as their own tests do."""

    def kept(**given: Any) -> bool:
        return meant("lora_flux", max_train_steps=4, **given).config.save.at_end

    assert kept(checkpointing_steps=2)
    assert not kept(checkpointing_steps=3) and not kept()


def test_layers_and_blocks() -> None:
    def targets(script: str, **given: Any) -> str:
        return meant(script, **given).config.method.target_modules

    assert targets("lora_flux", lora_layers="attn.to_k,ff.net.2") == "attn.to_k,ff.net.2"
    assert targets("lora_sd3", lora_layers="attn.to_k", lora_blocks="1,12") == (
        r"transformer_blocks\.(1|12)\.(.*\.)?(attn\.to_k)"
    )
    pattern = r"\..*\.(to_q|to_k|to_v|to_out\.0)"
    assert targets("lora_sdxl_advanced", lora_unet_blocks="unet.mid_block.attentions.0") == (
        rf"(mid_block\.attentions\.0){pattern}"
    )
    assert targets("lora_sdxl_advanced", use_blora=True) == (
        rf"(up_blocks\.0\.attentions\.0|up_blocks\.0\.attentions\.1){pattern}"
    )


def test_a_token_of_ones_own() -> None:
    method = meant("lora_sd15_advanced", train_text_encoder_ti=True).config.method
    assert (method.kind, method.placeholder_token, method.num_vectors) == ("pivotal", "TOK", 2)
    assert meant("lora_sd15_advanced").config.method.kind == "lora"


def test_quantization_from_a_file(tmp_path: Path) -> None:
    def kept(**settings: Any) -> str:
        path = tmp_path / "bnb.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        found = meant("lora_z_image", bnb_quantization_config_path=path)
        return found.config.memory.quantize

    assert kept(load_in_4bit=True, bnb_4bit_quant_type="nf4") == "nf4"
    assert kept(load_in_8bit=True) == "int8"
    with pytest.raises(UserError, match="neither load_in_4bit nor load_in_8bit"):
        kept()


def test_results_are_stored_as_they_were_trained() -> None:
    assert meant("lora_z_image").config.save.precision == "fp32"
    assert meant("lora_z_image", mixed_precision="bf16").config.save.precision == "bf16"
    upcast = meant("lora_z_image", mixed_precision="bf16", upcast_before_saving=True)
    assert upcast.config.save.precision == "fp32"
    assert meant("sd3", mixed_precision="bf16").config.save.precision == "fp32"


def test_prompts_for_validation(pictures: Path) -> None:
    images = {"instance_data_dir": pictures}
    final = meant("lora_krea2", **images, final_validation_prompt="a ball").config.validation
    assert (final.prompts, final.guidance_scale) == (["a ball"], 1.0)
    prompts = {"final_validation_prompt": "a ball", "validation_prompt": "a cube"}
    both = meant("lora_krea2", **images, **prompts)
    assert both.config.validation.prompts == ["a cube"]


@pytest.mark.parametrize("name", ["flux_kontext"])
def test_scripts_of_untrained_models_say_so(name: str) -> None:
    from dreambooth_core.compat.dialects import script_of

    with pytest.raises(Unsupported, match="not trained by this engine"):
        script_of(f"examples/dreambooth/train_dreambooth_lora_{name}.py")
