"""The conditions of inpainting UNets, and SDXL's time ids and autoencoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.families import reduced_base

from dreambooth_core.families.base import Conditioning, SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.inpainting import conditions, random_mask
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, decode, generate
from dreambooth_core.randomness import generator


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = reduced_base("sd1-inpainting", tmp_path_factory.mktemp("inpainting"))
    return load_base(BaseOptions(model=str(folder)))


def mask_of(step: int, slot: int = 0) -> torch.Tensor:
    return random_mask(64, 48, generator("mask", 0, step, slot))


def test_masks_are_keyed_and_of_every_size() -> None:
    assert torch.equal(mask_of(3), mask_of(3))
    masks = [mask_of(step) for step in range(200)]
    shares = torch.tensor([float(m.mean()) for m in masks])
    assert all(set(m.unique().tolist()) <= {0.0, 1.0} for m in masks)
    assert masks[0].shape == (1, 64, 48)
    whole = float((shares == 1).float().mean())
    assert 0.15 < whole < 0.35
    assert shares.min() < 0.15 and 0.2 < float(shares[shares < 1].mean()) < 0.6
    assert len({float(s) for s in shares}) > 100


def test_conditions_are_mask_and_hidden_picture(inpainting: Components) -> None:
    pixels = torch.rand(3, 64, 64, generator=generator("pixels")) * 2 - 1
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, 16:] = 1
    found = conditions(inpainting, pixels, mask)
    assert found.shape == (5, 8, 8)
    small = torch.zeros(8, 8)
    small[:4, 2:] = 1
    assert torch.equal(found[0], small)
    hidden = pixels.clone()
    hidden[:, :32, 16:] = 0
    with torch.no_grad():
        mean = inpainting.vae.encode(hidden[None]).latent_dist.mean[0]
    torch.testing.assert_close(found[1:], mean * inpainting.vae.config.scaling_factor)


def test_what_lies_under_the_mask_is_not_seen(inpainting: Components) -> None:
    mask = torch.ones(1, 64, 64)
    one, two = torch.rand(2, 3, 64, 64, generator=generator("pixels"))
    assert torch.equal(conditions(inpainting, one, mask), conditions(inpainting, two, mask))


def test_an_inpainting_model_draws_whole_pictures(inpainting: Components) -> None:
    settings = SamplingSettings(steps=2, width=64, height=64)
    (image,) = generate(inpainting, ["a ball"], [0], settings)
    assert image.size == (64, 64)


def test_sdxl_is_told_sizes_height_first(tmp_path: Path) -> None:
    parts = load_base(BaseOptions(model=str(reduced_base("sdxl", tmp_path / "xl"))))
    conditioning = Conditioning(torch.zeros(2, 77, 96), torch.ones(2, 64))
    sizes = [SizeInfo((600, 800), (8, 16), (512, 640)), SizeInfo((64, 64), (0, 0), (64, 64))]
    added = parts.family.added_conditions(parts, conditioning, sizes)
    assert added is not None
    assert added["time_ids"].tolist() == [[600, 800, 8, 16, 512, 640], [64, 64, 0, 0, 64, 64]]
    assert torch.equal(added["text_embeds"], torch.ones(2, 64))


def test_autoencoders_decode_in_their_own_precision_under_autocast(
    inpainting: Components,
) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=generator("latents"))
    with torch.no_grad():
        plain = decode(inpainting, latents)[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = decode(inpainting, latents)[0]
    assert plain.tobytes() == mixed.tobytes()
