"""Z-Image: our calls are its pipeline's, and what is trained is what is sampled."""

from __future__ import annotations

import pytest
import torch
from families.flow_proofs import PROMPT, Bench, batch_parity, call_parity, overfit, trained_loss
from helpers import flow_bases


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = flow_bases.z_image(tmp_path_factory.mktemp("z_image"))
    return Bench(folder, {"guidance_scale": 0.0})


def test_the_denoiser_gets_what_the_pipeline_gives_it(bench: Bench) -> None:
    assert call_parity(bench) < 1e-5
    assert batch_parity(bench) < 1e-5


@pytest.mark.long
def test_a_latent_that_was_trained_is_sampled_by_diffusers(bench: Bench) -> None:
    assert overfit(bench, steps=150) < 0.15


def test_the_loss_is_that_of_the_published_convention(bench: Bench) -> None:
    """Time is the share of the image, and the answer points from noise to image."""
    s = 0.3
    z = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    loss, noise, _ = trained_loss(bench, z, s, height=64, width=96)
    x0 = (z - 0.1159) * 0.3611
    x = (1 - s) * x0 + s * noise
    pipeline = bench.pipeline()
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt([PROMPT], do_classifier_free_guidance=False)
        answer = pipeline.transformer([x[0, :, None]], torch.tensor([1 - s]), embeds).sample[0]
    assert loss == pytest.approx(float((answer[:, 0] - (x0 - noise)[0]).square().mean()), rel=1e-5)
