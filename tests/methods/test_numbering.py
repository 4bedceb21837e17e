"""SDXL adapters carry LDM's block numbers, which depend on how many layers a block has."""

from __future__ import annotations

from pathlib import Path

from helpers.reduced_models import random_tensors, reduced_parts, unet_of
from helpers.runs import config_for, train

from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.checkpoints.parts import Component
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import read_receipt


def test_an_adapter_of_a_base_with_one_layer_a_block_is_numbered_as_its_base(
    tmp_path: Path, pictures: Path
) -> None:
    parts = reduced_parts("sdxl")
    config = unet_of("sdxl", (32, 64, 64), blocks=1, context=96, pooled=64)
    parts.components["unet"] = Component(config, random_tensors("unet", config))
    write_folder(parts, tmp_path / "base")
    folder = train(config_for(tmp_path / "base", pictures, tmp_path))
    write_single_file(parts, tmp_path / "base.safetensors")

    base = {
        name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        for name in read_tensors(tmp_path / "base.safetensors")
    }
    file = folder.path / read_receipt(folder)["result"]["file"]
    named = {key.split(".")[0] for key in read_tensors(file)}
    assert named
    assert {name.removeprefix("lora_unet_") for name in named} <= base
    assert read_adapter(file).layers_per_block == 1
