"""Names and shapes of complete checkpoints, on the meta device.

The digests were taken from the original code: the UNet and autoencoder classes of
CompVis/stable-diffusion, Stability-AI/stablediffusion and Stability-AI/generative-models built from
their own yaml, OpenAI's CLIP from transformers and OpenCLIP's ViT-H-14 and ViT-bigG-14.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from helpers.reduced_models import full_parts, meta_tensors

from dreambooth_core.families.stable_diffusion import single_layout, text, unet, vae
from dreambooth_core.families.stable_diffusion.parts import OPENCLIP, TEXT_ENCODERS
from dreambooth_core.families.stable_diffusion.single_write import tensors_of

ORIGINALS = {
    "sd1": (1131, "8130453d4ebe9f46b30a65959d1326fd2827cb5067bd178970ae2a274ec5d1f6"),
    "sd2": (1228, "bc301c57b82f26ff9b42a65ed19c6a0b649e7d4b8d7cab43c9991fc73bba95d2"),
    "sdxl": (2515, "2086c2ba91745f921763779e5e7d19ed40cf689f25c1dd929bb509a000f8cb6e"),
}
PARTS = {
    "sd1": {"model": 686, "first_stage_model": 248, "cond_stage_model": 197},
    "sd2": {"model": 686, "first_stage_model": 248, "cond_stage_model": 294},
    "sdxl": {"model": 1680, "first_stage_model": 248, "conditioner": 587},
}


def digest(tensors) -> str:
    lines = "".join(f"{name} {list(tensors[name].shape)}\n" for name in sorted(tensors))
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("family", ORIGINALS)
def test_names_and_shapes_are_the_originals(family):
    tensors = tensors_of(full_parts(family), "here")
    counts: dict[str, int] = {}
    for name in tensors:
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    assert counts == PARTS[family]
    assert (len(tensors), digest(tensors)) == ORIGINALS[family]


@pytest.mark.parametrize("family", ORIGINALS)
def test_inpainting_differs_in_one_weight(family):
    plain = tensors_of(full_parts(family), "here")
    nine = tensors_of(full_parts(family, in_channels=9), "here")
    assert plain.keys() == nine.keys()
    different = [name for name in plain if plain[name].shape != nine[name].shape]
    assert different == ["model.diffusion_model.input_blocks.0.0.weight"]
    assert nine[different[0]].shape[1] == 9


@pytest.mark.parametrize("family", ORIGINALS)
def test_diffusers_own_converter_agrees(family):
    """Names and shapes that diffusers' single-file loader makes of ours are those of its models."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    parts = full_parts(family)
    tensors = dict(tensors_of(parts, "here"))
    for name, convert in (
        ("unet", convert_ldm_unet_checkpoint),
        ("vae", convert_ldm_vae_checkpoint),
    ):
        config = parts.components[name].config
        theirs = convert(dict(tensors), config=config)
        ours = meta_tensors(name, config)
        assert {k: t.shape for k, t in theirs.items()} == {k: t.shape for k, t in ours.items()}


@pytest.mark.parametrize("family", ORIGINALS)
def test_plans_are_read_back_from_shapes(family):
    parts = full_parts(family, in_channels=9)
    shapes = {name: tuple(t.shape) for name, t in tensors_of(parts, "here").items()}
    assert single_layout.family_of(shapes) == family
    inside = single_layout.under(shapes, single_layout.UNET)
    config = parts.components["unet"].config
    assert unet.plan_from_shapes(inside) == unet.plan_from_config(config)
    inside = single_layout.under(shapes, single_layout.VAE)
    config = parts.components["vae"].config
    assert vae.plan_from_shapes(inside) == vae.plan_from_config(config)
    for name, prefix in TEXT_ENCODERS[family].items():
        inside = single_layout.under(shapes, prefix)
        openclip = (family, name) in OPENCLIP
        plan = (text.openclip_plan if openclip else text.clip_plan)(inside)
        assert plan.layers == {"sd1": 12, "sd2": 24}.get(family, plan.layers)
        assert plan.positions == 77 and plan.vocabulary == 49408


def test_dtype_is_cast_without_data():
    tensors = tensors_of(full_parts("sd1"), "here", dtype=torch.float16)
    kept = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert tensors.pop(kept).dtype == torch.int64
    assert {t.dtype for t in tensors.values()} == {torch.float16}
