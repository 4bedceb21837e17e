"""Flux.2 Klein, against its diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import flow_proofs as proofs
from helpers import flow_bases
from torch import Tensor

from dreambooth_core.families.base import Components

TOKENS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_bases.flux2_klein(tmp_path_factory.mktemp("bases") / "flux2_klein")


def spatial(parts: Components, packed: Tensor, height: int, width: int) -> Tensor:
    """The pipeline's tokens ``[1, n, channels]`` as our latents."""
    return packed.transpose(1, 2).reshape(len(packed), -1, height // 16, width // 16)


@pytest.fixture(scope="module")
def bench(folder: Path) -> proofs.Bench:
    call: dict[str, Any] = {"guidance_scale": 1.0, "max_sequence_length": TOKENS}
    return proofs.Bench(folder, call, TOKENS, inner=spatial)


def test_call_parity(bench: proofs.Bench) -> None:
    assert proofs.call_parity(bench) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench) < 1e-5


def test_overfit(bench: proofs.Bench) -> None:
    assert proofs.overfit(bench) < 0.15


def test_loss(bench: proofs.Bench) -> None:
    """v = noise - x0 of folded, normalised latents at the time s, with no shift."""
    raw = torch.randn(1, 32, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    blocks = raw.view(1, 32, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 4, 6)
    norm = parts.vae.bn
    spread = (norm.running_var + parts.vae.config.batch_norm_eps).sqrt()
    clean = (blocks - norm.running_mean[None, :, None, None]) / spread[None, :, None, None]
    noisy = (1 - share) * clean + share * noise
    embeds = parts.family.encode(parts, [proofs.PROMPT]).embeds
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    zeros = torch.zeros(24, dtype=torch.int64)
    image = torch.stack([zeros, rows.flatten(), columns.flatten(), zeros], dim=1)
    text = torch.zeros(TOKENS, 4, dtype=torch.int64)
    text[:, 3] = torch.arange(TOKENS)
    with torch.no_grad():
        answer = parts.denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=torch.tensor([share]),
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=text[None],
            img_ids=image[None],
        ).sample
    target = (noise - clean).flatten(2).transpose(1, 2)
    assert found == pytest.approx(float((answer - target).square().mean()), rel=1e-5)


def test_what_is_decoded_is_what_was_encoded(bench: proofs.Bench) -> None:
    parts = bench.parts()
    raw = torch.randn(2, 32, 8, 12)
    torch.testing.assert_close(parts.family.unscaled(parts, parts.family.scaled(parts, raw)), raw)


def test_a_distilled_base_is_told(tmp_path: Path, bench: proofs.Bench) -> None:
    assert not bench.parts().family.warnings(bench.parts())
    distilled = proofs.Bench(flow_bases.flux2_klein(tmp_path / "base", distilled=True)).parts()
    assert "distilled" in distilled.family.warnings(distilled)[0]
