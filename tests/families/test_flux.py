"""Flux.1 and Chroma: our calls are their pipelines', and what is trained is what is sampled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from families.flow_proofs import PROMPT, Bench, batch_parity, call_parity, overfit, trained_loss
from helpers import flow_bases
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions

TOKENS = 24
KINDS = ("dev", "schnell", "chroma")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bench]:
    root: Path = tmp_path_factory.mktemp("flux")
    call = {"guidance_scale": 1.0, "max_sequence_length": TOKENS}
    folders = {
        "dev": flow_bases.flux(root / "dev"),
        "schnell": flow_bases.flux(root / "schnell", guidance=False),
        "chroma": flow_bases.chroma(root / "chroma"),
    }
    made = {name: Bench(folder, call, TOKENS) for name, folder in folders.items()}
    told = {**call, "guidance_scale": 3.5}
    return {**made, "dev told 3.5": Bench(folders["dev"], told, TOKENS, told=3.5)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_gets_what_the_pipeline_gives_it(benches: dict[str, Bench], kind: str) -> None:
    assert call_parity(benches[kind]) < 1e-5
    assert batch_parity(benches[kind]) < 1e-5


def test_a_guidance_in_training_is_for_bases_that_are_told_one(benches: dict[str, Bench]) -> None:
    """Told apart from that of images, and refused before any weight is read."""
    assert call_parity(benches["dev told 3.5"]) < 1e-5
    for kind in ("schnell", "chroma"):
        options = BaseOptions(model=str(benches[kind].folder), guidance=3.5)
        with pytest.raises(UserError, match="is not told its guidance") as caught:
            load_base(options, weights=False)
        assert caught.value.where == "base.guidance"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dev", "chroma"])
def test_a_latent_that_was_trained_is_sampled_by_diffusers(
    benches: dict[str, Bench], kind: str
) -> None:
    assert overfit(benches[kind]) < 0.15


@pytest.mark.parametrize("kind", ["dev", "chroma"])
def test_only_what_stands_at_the_ends_is_never_quantised(
    benches: dict[str, Bench], kind: str
) -> None:
    """Modulation is a quarter of Flux.1's weights: whole, 4 bits would need half as much again."""
    parts = benches[kind].parts()
    layers = [n for n, module in parts.denoiser.named_modules() if isinstance(module, nn.Linear)]
    whole = parts.family.whole_in("transformer")
    inside = [name for name in layers if "transformer_blocks." in name]
    assert inside and not [name for name in inside if re.search(whole, name)]
    assert all(re.search(whole, name) for name in {*layers} - {*inside})


def test_the_loss_is_that_of_the_published_convention(benches: dict[str, Bench]) -> None:
    """Straight line to noise, v = noise - x0, time as the share of noise, packed two by two."""
    bench, s = benches["dev"], 0.3
    z = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    loss, noise, _ = trained_loss(bench, z, s, height=64, width=96)
    x0 = (z - 0.1159) * 0.3611
    x = (1 - s) * x0 + s * noise
    places = [(r, c) for r in range(4) for c in range(6)]

    def token(image: torch.Tensor, r: int, c: int) -> torch.Tensor:
        return image[0, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten()

    pipeline = bench.pipeline()
    with torch.no_grad():
        embeds, pooled, text_ids = pipeline.encode_prompt(PROMPT, None, max_sequence_length=TOKENS)
        answer = pipeline.transformer(
            hidden_states=torch.stack([token(x, *place) for place in places])[None],
            timestep=torch.tensor([s]),
            guidance=torch.tensor([1.0]),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=torch.tensor([[0.0, r, c] for r, c in places]),
        ).sample[0]
    v = noise - x0
    errors = [(answer[i] - token(v, *place)).square() for i, place in enumerate(places)]
    assert loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
