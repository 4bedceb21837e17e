"""Checkpoints of Stable Diffusion whose UNet hosts store in 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.adapters import adapter_for
from helpers.host_files import as_fp8
from helpers.reduced_models import reduced_parts

from dreambooth_core.commands.main import main
from dreambooth_core.families.stable_diffusion.read import read_model
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.checkpoints.parts import ModelParts

PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("scale", [None, "scale_weight", "weight_scale"])
def test_what_the_numbers_mean_is_read_and_baked_into(tmp_path: Path, scale: str | None) -> None:
    whole, file = tmp_path / "whole.safetensors", tmp_path / "fp8.safetensors"
    write_single_file(reduced_parts("sd1", slim=True), whole)
    tensors = storage.read_tensors(whole)
    unet = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    stored = as_fp8(unet, scale)
    storage.write_tensors(file, tensors | stored, storage.read_metadata(whole))

    meant = {}
    for key, tensor in unet.items():
        value = stored[key]
        if value.dtype.itemsize == 1:
            factor = stored[f"{key.removesuffix('.weight')}.{scale}"] if scale else 1.0
            value = (value.float() * factor).half()
        meant[key] = value
        assert torch.allclose(value.float(), tensor.float(), rtol=2**-4, atol=2**-9), key
    storage.write_tensors(
        tmp_path / "meant.safetensors", tensors | meant, storage.read_metadata(whole)
    )
    model, wanted = read_model(file), read_model(tmp_path / "meant.safetensors")
    for name, component in wanted.components.items():
        for key, tensor in component.tensors.items():
            assert torch.equal(model.components[name].tensors[key], tensor), key

    adapter = adapter_for("sd1", every=2, base=_layers(model))
    lora = write_adapter(adapter, tmp_path / "lora.safetensors")
    assert main(["bake", str(file), str(lora), "--out", str(tmp_path / "baked.safetensors")]) == 0
    after = read_model(tmp_path / "baked.safetensors").components["unet"].tensors
    for name, weights in adapter.modules.items():
        key = f"{name.partition('.')[2]}.weight"
        before = model.components["unet"].tensors[key]
        exact = (before.float() + weights.delta(before)).to(before.dtype)
        assert torch.equal(after[key], exact), name


def _layers(model: ModelParts) -> dict[str, torch.Tensor]:
    """The UNet's linear layers by their names in adapters."""
    unet = model.components["unet"].tensors
    return {
        f"unet.{key.removesuffix('.weight')}": tensor
        for key, tensor in unet.items()
        if key.endswith(("to_q.weight", "to_v.weight"))
    }
