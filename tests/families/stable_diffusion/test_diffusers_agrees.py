"""Independent readers: diffusers' single-file loader and pipelines open what is written here."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.reduced_models import reduced_parts

from dreambooth_core.families.stable_diffusion.build import build
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.scheduler import SCHEDULERS, with_scheduler
from dreambooth_core.families.stable_diffusion.single_read import read_single_file
from dreambooth_core.families.stable_diffusion.single_write import write_single_file

FAMILIES = [("sd1", 4), ("sd1", 9), ("sd2", 4), ("sdxl", 4), ("sdxl", 9)]


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = state(first), state(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.library_api
@pytest.mark.parametrize(("family", "channels"), FAMILIES)
def test_single_file_loader_reads_the_same_weights(tmp_path, family, channels):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    made = reduced_parts(family, in_channels=channels)
    write_single_file(made, tmp_path / "a.safetensors")
    models = build(made)
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        config = made.components[name].config
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        theirs = kind.from_single_file(
            str(tmp_path / "a.safetensors"), config=str(folder), local_files_only=True
        )
        assert equal(models[name], theirs), name


@pytest.mark.library_api
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_single_file_loader_reads_the_same_text_encoders(tmp_path, family):
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    made = reduced_parts(family)
    if family == "sd2":  # their list of unused layers knows the full size alone
        write_single_file(made, tmp_path / "a.safetensors", extras="none")
    else:
        write_single_file(made, tmp_path / "a.safetensors")
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "a.safetensors")
    tensors = {k: v for k, v in tensors.items() if ".resblocks.3." not in k}
    models = build(made)
    for name in made.components:
        if not name.startswith("text"):
            continue
        kind = CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(made.components[name].config))
        theirs = create_diffusers_clip_model_from_ldm(
            kind,
            dict(tensors),
            config=str(folder),
            torch_dtype=torch.float32,
            local_files_only=True,
        )
        assert equal(models[name], theirs), name


@pytest.mark.library_api
@pytest.mark.parametrize(("family", "channels"), FAMILIES)
def test_a_written_folder_is_a_whole_pipeline(tmp_path, family, channels):
    from diffusers import DiffusionPipeline

    made = reduced_parts(family, in_channels=channels)
    write_folder(made, tmp_path / "folder")
    pipeline = DiffusionPipeline.from_pretrained(
        tmp_path / "folder", local_files_only=True, low_cpu_mem_usage=True
    )
    for name, model in build(made).items():
        assert equal(model, getattr(pipeline, name)), name
    assert pipeline.tokenizer("a").input_ids == [49406, 320, 49407]
    if family == "sdxl":
        assert pipeline.tokenizer_2.pad_token_id == 0
    else:
        assert pipeline.safety_checker is None and pipeline.feature_extractor is not None
    assert type(pipeline).__name__.endswith(
        "InpaintPipeline"
        if channels == 9
        else "DiffusionPipeline"
        if family != "sdxl"
        else "XLPipeline"
    )


@pytest.mark.library_api
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_picture_is_the_same_either_way(tmp_path, family):
    """Sampling from the folder equals sampling from networks built of the single file."""
    from diffusers import DiffusionPipeline

    made = reduced_parts(family)
    write_folder(made, tmp_path / "folder")
    write_single_file(made, tmp_path / "a.safetensors")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for networks in ({}, build(read_single_file(tmp_path / "a.safetensors"))):
        for name, model in networks.items():
            setattr(pipeline, name, model)
        seed = torch.Generator().manual_seed(0)
        pictures.append(
            pipeline(
                "a dog",
                num_inference_steps=2,
                height=64,
                width=64,
                generator=seed,
                output_type="pt",
            ).images
        )
    # Rounding differs with where in memory a weight begins; the weights themselves are equal.
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)
    assert pictures[0].std() > 1e-3


@pytest.mark.library_api
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_loads_and_keeps_the_noise_schedule(tmp_path, name, recwarn):
    import diffusers

    config = reduced_parts("sd1", prediction_type="v_prediction").scheduler
    config["beta_end"] = 0.02
    config = with_scheduler(config, name)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    made = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path)
    assert made.config.prediction_type == "v_prediction" and made.config.beta_end == 0.02
    assert made.betas[-1].item() == pytest.approx(0.02)
    assert not [w for w in recwarn if "not expected" in str(w.message)]
