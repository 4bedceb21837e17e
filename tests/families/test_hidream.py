"""HiDream, against its diffusers pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from families import flow_proofs as proofs
from helpers import flow_bases
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.families.base import SizeInfo
from dreambooth_core.families.hidream import HiDream
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate

TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_bases.hidream(tmp_path_factory.mktemp("bases") / "hidream")


@pytest.fixture(scope="module")
def bench(folder: Path) -> proofs.Bench:
    call = {"guidance_scale": 1.0, "max_sequence_length": TOKENS}
    return proofs.Bench(folder, call, TOKENS, ready=HiDream().readied)


@pytest.mark.parametrize("width", [64, 96])
def test_call_parity(bench: proofs.Bench, width: int) -> None:
    """Images that are not square have padding behind their tokens."""
    assert proofs.call_parity(bench, width=width) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench) < 1e-5


def test_loss(bench: proofs.Bench) -> None:
    """The model counts noise in thousandths and answers x0 - noise."""
    raw = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    clean = (raw - parts.vae.config.shift_factor) * parts.vae.config.scaling_factor
    pipeline = bench.pipeline()
    with torch.no_grad():
        t5, _, llama, _, pooled, _ = pipeline.encode_prompt(
            proofs.PROMPT, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        answer = pipeline.transformer(
            hidden_states=(1 - share) * clean + share * noise,
            timesteps=torch.tensor([1000 * share]),
            encoder_hidden_states_t5=t5,
            encoder_hidden_states_llama3=llama,
            pooled_embeds=pooled,
        ).sample
    direct = (answer - (clean - noise)).square().mean()
    assert found == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.parametrize("width", [64, 96])
def test_in_training_it_answers_the_same_and_its_experts_learn(
    bench: proofs.Bench, width: int
) -> None:
    """diffusers' model answers in another layout then; as its script loads it, no gradient comes
    through the experts that a token is sent to."""
    parts = bench.parts()
    still = proofs.predict(parts, width=width)
    parts.denoiser.train().requires_grad_(True)
    torch.testing.assert_close(proofs.predict(parts, width=width), still, atol=1e-5, rtol=1e-5)
    noisy = torch.randn(1, *parts.family.latent_shape(parts.configs, 64, width))
    conditioning = parts.family.encode(parts, [proofs.PROMPT])
    sizes = [SizeInfo((64, width), (0, 0), (64, width))]
    answer = parts.family.predict(parts, noisy, torch.tensor([0.5]), conditioning, sizes)
    answer.square().mean().backward()
    block = parts.denoiser.single_stream_blocks[0].block
    learned: list[Tensor | None] = [expert.w1.weight.grad for expert in block.ff_i.experts]
    assert sum(grad is not None and bool(grad.any()) for grad in learned) >= 2


def test_images_have_the_size_that_is_asked_for(bench: proofs.Bench) -> None:
    parts = bench.parts()
    settings = SamplingSettings(steps=1, guidance=3.0, scheduler="", width=96, height=48)
    images = generate(parts, [proofs.PROMPT, proofs.OTHER], [1, 2], settings)
    assert [image.size for image in images] == [(96, 48)] * 2


def test_what_its_tokens_have_no_room_for_is_refused(bench: proofs.Bench) -> None:
    parts = bench.parts()
    assert parts.family.latent_shape(parts.configs, 256, 256) == (16, 32, 32)
    with pytest.raises(UserError, match=r"no image of 256 x 128 pixels.*128 x 128"):
        parts.family.latent_shape(parts.configs, 128, 256)


def test_llama_is_published_on_its_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder_4")
    with pytest.raises(UserError, match=r"has no text encoder 4.* Llama 3\.1 8B Instruct"):
        load_base(BaseOptions(model=str(tmp_path / "base")))


def test_a_folder_that_is_written_is_whole(bench: proofs.Bench, tmp_path: Path) -> None:
    parts = bench.parts()
    parts.family.write_folder(parts, tmp_path / "out", torch.float32, {})
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    theirs = pipeline.transformer.state_dict()
    assert all(torch.equal(theirs[n], t) for n, t in parts.denoiser.state_dict().items())


@pytest.mark.long
def test_overfit(bench: proofs.Bench) -> None:
    assert proofs.overfit(bench, steps=150) < 0.15
