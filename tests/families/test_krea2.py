"""Krea 2: our calls are its pipeline's, and what is trained is what is sampled."""

from __future__ import annotations

import pytest
import torch
from families.flow_proofs import PROMPT, Bench, batch_parity, call_parity, overfit, trained_loss
from helpers import flow_bases


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return flow_bases.krea2(tmp_path_factory.mktemp("krea2"))


@pytest.fixture(scope="module")
def bench(folder) -> Bench:
    """With room for PROMPT and no more, so that the pipeline pads nothing either."""
    pipeline = Bench(folder).pipeline()
    tokens = int(pipeline.encode_prompt([PROMPT])[1].sum())
    return Bench(folder, {"guidance_scale": 0.0, "max_sequence_length": tokens}, tokens)


def test_the_denoiser_gets_what_the_pipeline_gives_it(bench: Bench) -> None:
    assert call_parity(bench) < 1e-5
    assert batch_parity(bench) < 1e-5


def test_what_the_pipeline_masks_changes_nothing(bench: Bench) -> None:
    """The answer with its padding is the answer without."""
    parts, pipeline = bench.parts(), bench.pipeline()
    noisy = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    time = torch.tensor([0.4])
    with torch.no_grad():
        ours = parts.family.predict(parts, noisy, time, parts.family.encode(parts, [PROMPT]), [])
        embeds, mask = pipeline.encode_prompt([PROMPT], max_sequence_length=64)
        assert not bool(mask.all())
        theirs = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, 1, 16, 8, 12),
            encoder_hidden_states=embeds,
            timestep=time,
            position_ids=pipeline.prepare_position_ids(64, 4, 6, torch.device("cpu")),
            encoder_attention_mask=mask,
        ).sample
    theirs = parts.family.latents_of(parts, theirs, 64, 96)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_a_latent_that_was_trained_is_sampled_by_diffusers(bench: Bench) -> None:
    assert overfit(bench) < 0.15


def test_the_loss_is_that_of_the_published_convention(bench: Bench) -> None:
    share = 0.3
    raw = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    found, noise, parts = trained_loss(bench, raw, share, height=64, width=96)
    config, pipeline = parts.vae.config, bench.pipeline()
    mean, deviation = (
        torch.tensor(values)[None, :, None, None]
        for values in (config.latents_mean, config.latents_std)
    )
    clean = (raw - mean) / deviation
    noisy = (1 - share) * clean + share * noise
    with torch.no_grad():
        embeds, mask = pipeline.encode_prompt([PROMPT], max_sequence_length=bench.tokens)
        answer = pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, 1, 16, 8, 12),
            encoder_hidden_states=embeds,
            timestep=torch.tensor([share]),
            position_ids=pipeline.prepare_position_ids(embeds.shape[1], 4, 6, torch.device("cpu")),
            encoder_attention_mask=mask,
        ).sample
    target = pipeline._pack_latents(noise - clean, 1, 16, 8, 12)
    assert found == pytest.approx(float((answer - target).square().mean()), rel=1e-5)


def test_guidance_by_a_longer_negative_prompt(folder) -> None:
    from dreambooth_core.families.sampling import SamplingSettings, generate

    settings = SamplingSettings(
        steps=1, guidance=3.0, width=64, height=64, negative_prompt=f"{PROMPT} {PROMPT}"
    )
    parts = Bench(folder, tokens=64).parts()
    first = generate(parts, ["sks", PROMPT], [1, 2], settings)
    assert len(first) == 2
