"""Stable Diffusion 3: our calls are its pipeline's, and what is trained is what is sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families.flow_proofs import PROMPT, Bench, batch_parity, call_parity, overfit, trained_loss
from helpers import flow_bases

from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.run import ValidationOptions
from dreambooth_core.trainer.decide import refuse_for_family
from dreambooth_core.trainer.validation import sampling_settings

TOKENS = 16


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    root: Path = tmp_path_factory.mktemp("sd3")
    call = {"guidance_scale": 1.0, "max_sequence_length": TOKENS}
    return {
        "3": Bench(flow_bases.sd3(root / "3", medium=False), call, TOKENS),
        "3.5 medium": Bench(flow_bases.sd3(root / "3.5"), call, TOKENS),
    }


@pytest.mark.parametrize("kind", ["3", "3.5 medium"])
def test_the_denoiser_gets_what_the_pipeline_gives_it(benches: dict[str, Bench], kind: str) -> None:
    assert call_parity(benches[kind]) < 1e-5
    assert batch_parity(benches[kind]) < 1e-5


@pytest.mark.long
def test_a_latent_that_was_trained_is_sampled_by_diffusers(benches: dict[str, Bench]) -> None:
    assert overfit(benches["3"], steps=600) < 0.15


def test_the_loss_is_that_of_the_published_convention(benches: dict[str, Bench]) -> None:
    """Latents are moved and stretched; time is the share of noise in thousandths."""
    bench, s = benches["3"], 0.3
    z = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    loss, noise, _ = trained_loss(bench, z, s, height=64, width=96)
    x0 = (z - 0.0609) * 1.5305
    pipeline = bench.pipeline()
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        answer = pipeline.transformer(
            (1 - s) * x0 + s * noise, embeds, pooled, torch.tensor([300.0])
        ).sample
    assert loss == pytest.approx(float((answer - (noise - x0)).square().mean()), rel=1e-5)


def test_an_image_beyond_the_table_of_places_is_refused(benches: dict[str, Bench]) -> None:
    """Before anything is read: 24 places of 16 pixels."""
    parts = load_base(BaseOptions(model=str(benches["3"].folder)), weights=False)
    config = TrainConfig(method=MethodOptions(train_text_encoder=False))
    refuse_for_family(config, parts, [(384, 384), (384, 64)])
    with pytest.raises(UserError, match="no image of 400 x 64 pixels: a side has at most 384"):
        refuse_for_family(config, parts, [(384, 384), (64, 400)])
    with pytest.raises(UserError, match="a side has at most 384") as refused:
        sampling_settings(ValidationOptions(size=512), parts, (64, 64))
    assert refused.value.where == "validation.size"
