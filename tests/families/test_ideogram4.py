"""Ideogram 4, against its diffusers pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from families import flow_proofs as proofs
from helpers import flow_bases
from torch import Tensor

from dreambooth_core.config.loading import load
from dreambooth_core.devices import Precision
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.ideogram4 import Ideogram4
from dreambooth_core.families.sampling import SamplingSettings, build_pipeline, generate
from dreambooth_core.memory.needs import Planner
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.placement import Placement


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_bases.ideogram4(tmp_path_factory.mktemp("bases") / "ideogram4")


@pytest.fixture(scope="module")
def bench(folder: Path) -> proofs.Bench:
    """With room for PROMPT and no more, so that the pipeline pads nothing either."""
    parts = proofs.Bench(folder).parts()
    tokens = parts.family.encode(parts, [proofs.PROMPT]).embeds.shape[1]
    call = {"guidance_scale": 1.0, "guidance_schedule": None, "max_sequence_length": tokens}
    return proofs.Bench(folder, call, tokens)


def test_call_parity(bench: proofs.Bench) -> None:
    assert proofs.call_parity(bench) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench) < 1e-5


def test_padding_as_the_pipeline_has_it_changes_nothing(bench: proofs.Bench) -> None:
    parts, pipeline = bench.parts(), bench.pipeline()
    noisy = torch.randn(1, 32, 4, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        conditioning = parts.family.encode(parts, [proofs.PROMPT])
        ours = parts.family.predict(parts, noisy, torch.tensor([0.4]), conditioning, [])
        theirs = _answer(pipeline, noisy, 0.4, tokens=64)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _answer(pipeline: DiffusionPipeline, noisy: Tensor, share: float, *, tokens: int) -> Tensor:
    """What the pipeline would give its scheduler, of ``[1, 32, 4, 6]`` for PROMPT."""
    embeds, places, segments, kinds = pipeline.encode_prompt(proofs.PROMPT, 4, 6, tokens, "cpu")
    image = noisy.flatten(2).transpose(1, 2)
    answer = pipeline.transformer(
        hidden_states=torch.cat([torch.zeros(1, tokens, 32), image], dim=1),
        timestep=torch.tensor([1 - share]),
        encoder_hidden_states=embeds,
        position_ids=places,
        segment_ids=segments,
        indicator=kinds,
    ).sample
    return -answer[:, tokens:].transpose(1, 2).reshape(1, 32, 4, 6)


def test_loss(bench: proofs.Bench) -> None:
    """Cells of the autoencoder two by two, the channel fastest, normalised in that order; the
    model counts the image's share and answers x0 - noise."""
    raw = torch.randn(1, 8, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    norm = parts.vae.bn
    spread = (norm.running_var + parts.vae.config.batch_norm_eps).sqrt()
    clean = torch.empty(1, 32, 4, 6)
    for row in range(4):
        for column in range(6):
            cell = raw[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            numbers = torch.cat([cell[:, y, x] for y in (0, 1) for x in (0, 1)])
            clean[0, :, row, column] = (numbers - norm.running_mean) / spread
    with torch.no_grad():
        noisy = (1 - share) * clean + share * noise
        answer = _answer(bench.pipeline(), noisy, share, tokens=bench.tokens or 0)
    direct = (answer - (noise - clean)).square().mean()
    assert found == pytest.approx(float(direct), rel=1e-5)


def test_half_precision_keeps_the_places(bench: proofs.Bench) -> None:
    """They begin at 65536, where bf16 tells no two columns apart."""
    parts = bench.parts()
    exact = proofs.predict(parts)
    with torch.autocast("cpu", torch.bfloat16):
        half = proofs.predict(parts)
    assert float((half - exact).norm() / exact.norm()) < 0.03


def test_what_is_decoded_is_what_was_encoded(bench: proofs.Bench) -> None:
    parts = bench.parts()
    raw = torch.randn(2, 8, 8, 12)
    torch.testing.assert_close(parts.family.unscaled(parts, parts.family.scaled(parts, raw)), raw)


def test_larger_images_are_drawn_noisier(bench: proofs.Bench) -> None:
    """The mean of log(s / (1 - s)) is 0 at 512 px and half the logarithm of the pixels more."""
    parts = bench.parts()
    objective = parts.family.objective(ObjectiveOptions(), parts)

    def mean(size: int) -> tuple[float, float]:
        latents = torch.zeros(1, 1, size // 16, size // 16).expand(4000, -1, -1, -1)
        drawn = objective.draw(latents, [("train", 0, 0, i) for i in range(4000)])
        logits = torch.logit(drawn.timesteps.double())
        return float(logits.mean()), float(logits.std())

    assert mean(512) == pytest.approx((0.0, 1.5), abs=0.1)
    assert mean(1024) == pytest.approx((0.693, 1.5), abs=0.1)


def test_guidance_is_by_the_second_denoiser(bench: proofs.Bench) -> None:
    parts = bench.parts()
    settings = SamplingSettings(steps=1, guidance=3.0, scheduler="", width=64, height=64)
    prompts = [proofs.PROMPT, proofs.OTHER]
    first = generate(parts, prompts, [1, 2], settings)
    (second,) = parts.companions.values()
    assert build_pipeline(parts, "").unconditional_transformer is second
    for weight in second.parameters():
        weight.data.zero_()
    assert [image.tobytes() for image in generate(parts, prompts, [1, 2], settings)] != [
        image.tobytes() for image in first
    ]


def test_class_images_are_made_by_both_denoisers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come to the device, and the estimate counts both."""
    parts = proofs.Bench(folder).parts()
    prior = ("prior.enabled=true", "run.mixed_precision=bf16", "data.resolution=64")
    config = load(TrainConfig, overrides=[f"base.model={folder.as_posix()}", *prior])
    precision = Precision(torch.device("meta"), torch.float32, None)
    monkeypatch.setattr("dreambooth_core.trainer.placement.apply_attention", lambda *_: None)
    with Placement(config, parts, precision).all(precision, torch.float32):
        assert {p.device.type for model in parts.networks for p in model.parameters()} == {"meta"}
    both = Planner(config, device="cuda").needs().class_images
    monkeypatch.setattr(Ideogram4, "companions", ())
    alone = Planner(config, device="cuda").needs().class_images
    assert both - alone == 2 * sum(p.numel() for p in parts.denoiser.parameters())


def test_a_folder_that_is_written_is_whole(bench: proofs.Bench, tmp_path: Path) -> None:
    parts: Components = bench.parts()
    parts.family.write_folder(parts, tmp_path / "out", torch.float32, {})
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    (mine,) = parts.companions.values()
    theirs = pipeline.unconditional_transformer.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.state_dict().items())


def test_a_prompt_that_is_too_long_is_refused(bench: proofs.Bench) -> None:
    parts = bench.parts()
    with pytest.raises(UserError, match=rf"tokens, and {bench.tokens} are read"):
        parts.family.encode(parts, [f"{proofs.PROMPT} twice"])


@pytest.mark.long
def test_overfit(bench: proofs.Bench) -> None:
    """Uniformly: of so small an image the noise with which sampling begins is hardly ever drawn."""
    options = ObjectiveOptions(timestep_bias="none", shift="none")
    assert proofs.overfit(bench, options=options) < 0.15
