"""Lumina 2, against its diffusers pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import flow_proofs as proofs
from helpers import flow_bases

TOKENS = 48


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> proofs.Bench:
    folder = flow_bases.lumina2(tmp_path_factory.mktemp("bases") / "lumina2")
    call: dict[str, Any] = {"guidance_scale": 1.0, "max_sequence_length": TOKENS}
    return proofs.Bench(folder, call, TOKENS)


def test_call_parity(bench: proofs.Bench) -> None:
    assert proofs.call_parity(bench) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench) < 1e-5


@pytest.mark.long
def test_overfit(bench: proofs.Bench) -> None:
    assert proofs.overfit(bench, steps=150) < 0.15


def test_loss(bench: proofs.Bench) -> None:
    """The model counts the image's share 1 - s, and answers x0 - noise."""
    raw = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    clean = (raw - parts.vae.config.shift_factor) * parts.vae.config.scaling_factor
    conditioning = parts.family.encode(parts, [proofs.PROMPT])
    with torch.no_grad():
        answer = parts.denoiser(
            hidden_states=(1 - share) * clean + share * noise,
            timestep=torch.tensor([1 - share]),
            encoder_hidden_states=conditioning.embeds,
            encoder_attention_mask=conditioning.mask,
        ).sample
    direct = (answer - (clean - noise)).square().mean()
    assert found == pytest.approx(float(direct), rel=1e-5)


def test_a_negative_prompt_has_no_system_prompt(bench: proofs.Bench) -> None:
    parts = bench.parts()
    made = parts.family.sampling_arguments(parts, [proofs.PROMPT], "red", 4.0)
    masks = (made["prompt_attention_mask"], made["negative_prompt_attention_mask"])
    assert int(masks[0].sum()) > 20 > int(masks[1].sum())
