"""Qwen-Image: our calls are its pipeline's, and what is trained is what is sampled."""

from __future__ import annotations

import pytest
import torch
from families.flow_proofs import PROMPT, Bench, batch_parity, call_parity, overfit, trained_loss
from helpers import flow_bases


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = flow_bases.qwen_image(tmp_path_factory.mktemp("qwen_image"))
    return Bench(folder, {"true_cfg_scale": 1.0})


def test_the_denoiser_gets_what_the_pipeline_gives_it(bench: Bench) -> None:
    assert call_parity(bench) < 1e-5
    assert batch_parity(bench) < 1e-5


def test_a_latent_that_was_trained_is_sampled_by_diffusers(bench: Bench) -> None:
    assert overfit(bench) < 0.15


def test_the_autoencoder_gets_videos_of_one_frame(bench: Bench) -> None:
    parts, vae = bench.parts(), bench.pipeline().vae
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs = vae.encode(image[:, :, None]).latent_dist
        mean, deviation = parts.family.encode_pixels(parts, image)
        assert torch.allclose(mean, theirs.mean[:, :, 0], atol=1e-5)
        assert torch.allclose(deviation, theirs.std[:, :, 0], atol=1e-5)
        scaled = parts.family.scaled(parts, mean)
        assert torch.allclose(parts.family.unscaled(parts, scaled), mean, atol=1e-5)
        decoded = parts.family.decode_pixels(parts, mean)
        assert torch.allclose(decoded, vae.decode(theirs.mean).sample[:, :, 0], atol=1e-5)


def test_the_loss_is_that_of_the_published_convention(bench: Bench) -> None:
    """Each channel of the latents is brought to mean 0 and deviation 1 by constants."""
    s = 0.3
    z = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    loss, noise, _ = trained_loss(bench, z, s, height=64, width=96)
    pipeline = bench.pipeline()
    config = pipeline.vae.config
    x0 = torch.stack(
        [(z[:, i] - config.latents_mean[i]) / config.latents_std[i] for i in range(16)], dim=1
    )
    x, v = (1 - s) * x0 + s * noise, noise - x0
    places = [(r, c) for r in range(4) for c in range(6)]

    def token(image: torch.Tensor, r: int, c: int) -> torch.Tensor:
        return image[0, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten()

    with torch.no_grad():
        embeds, mask = pipeline.encode_prompt(PROMPT)
        assert mask is None
        answer = pipeline.transformer(
            hidden_states=torch.stack([token(x, *place) for place in places])[None],
            encoder_hidden_states=embeds,
            timestep=torch.tensor([s]),
            img_shapes=[[(1, 4, 6)]],
        ).sample[0]
    errors = [(answer[i] - token(v, *place)).square() for i, place in enumerate(places)]
    assert loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
