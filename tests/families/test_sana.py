"""Sana, against its diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import flow_proofs as proofs
from helpers import flow_bases

TOKENS = 32
SIZE = 256
"""Eight cells."""


@dataclass(frozen=True)
class Exact(proofs.Bench):
    """With a sampler whose times are no whole numbers, as its own has them."""

    def pipeline(self) -> Any:
        pipeline = super().pipeline()
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return pipeline


CALL: dict[str, Any] = {
    "guidance_scale": 1.0,
    "max_sequence_length": TOKENS,
    "use_resolution_binning": False,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> proofs.Bench:
    folder = flow_bases.sana(tmp_path_factory.mktemp("bases") / "sana")
    return Exact(folder, CALL, TOKENS)


def test_call_parity(bench: proofs.Bench) -> None:
    assert proofs.call_parity(bench, height=SIZE, width=384) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench, height=SIZE, width=384) < 1e-5


@pytest.mark.long
def test_overfit(bench: proofs.Bench) -> None:
    """By its own sampler."""
    own = proofs.Bench(bench.folder, CALL, TOKENS)
    assert proofs.overfit(own, size=128, rate=4e-3, steps=230) < 0.15


def test_loss(bench: proofs.Bench) -> None:
    raw = torch.randn(1, 32, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=SIZE, width=384)
    clean = raw * parts.vae.config.scaling_factor
    conditioning = parts.family.encode(parts, [proofs.PROMPT])
    with torch.no_grad():
        answer = parts.denoiser(
            (1 - share) * clean + share * noise,
            encoder_hidden_states=conditioning.embeds,
            encoder_attention_mask=conditioning.mask,
            timestep=torch.tensor([1000 * share]),
        ).sample
    direct = (answer - (noise - clean)).square().mean()
    assert found == pytest.approx(float(direct), rel=1e-5)


def test_pictures_become_latents_of_32_pixels(bench: proofs.Bench) -> None:
    parts = bench.parts()
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean, deviation = parts.family.encode_pixels(parts, pixels)
        assert torch.equal(mean, parts.vae.encode(pixels).latent)
        assert parts.family.decode_pixels(parts, mean).shape == pixels.shape
    assert mean.shape[1:] == parts.family.latent_shape(parts.configs, 64, 96) == (32, 2, 3)
    assert not bool(deviation.any())


def test_a_negative_prompt_stands_behind_no_instruction(bench: proofs.Bench) -> None:
    parts = bench.parts()
    made = parts.family.sampling_arguments(parts, [proofs.PROMPT], "red", 4.0)
    theirs = bench.pipeline().encode_prompt(
        [proofs.PROMPT],
        negative_prompt="red",
        device=torch.device("cpu"),
        max_sequence_length=TOKENS,
        complex_human_instruction=["a photo of "],
    )
    assert torch.equal(made["negative_prompt_embeds"], theirs[2])
    assert torch.equal(made["negative_prompt_attention_mask"], theirs[3])
    assert not torch.equal(made["prompt_embeds"], theirs[0])
