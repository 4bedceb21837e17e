"""SDXL by rectified flow: diffusers' own pipeline asks the same, and samples what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from families.flow_proofs import PROMPT, Bench, calls, difference, noted, overfit, trained_loss
from helpers.reduced_models import reduced_parts
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures

from dreambooth_core.errors import UserError
from dreambooth_core.families.base import SizeInfo
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import build_pipeline
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.prediction import find
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.storage import read_metadata
from dreambooth_core.jobs import read_receipt
from dreambooth_core.objective.options import ObjectiveOptions

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = reduced_parts("sdxl", prediction_type="flow_prediction", slim=True)
    torch.manual_seed(0)
    unet = made.components["unet"]
    unet.tensors = dict(UNet2DConditionModel.from_config(unet.config).state_dict())
    made.scheduler["flow_shift"] = 1.0
    path = tmp_path_factory.mktemp("flow") / "base"
    write_folder(made, path)
    return path


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return Bench(folder, {"guidance_scale": 1.0})


def test_the_unet_gets_what_the_pipeline_gives_it(bench: Bench) -> None:
    parts, pipeline = bench.parts(), bench.pipeline()
    with calls(pipeline.unet) as theirs:
        bench.sample(pipeline, SIDE, SIDE, 3)
    family, sizes = parts.family, [SizeInfo((SIDE, SIDE), (0, 0), (SIDE, SIDE))]
    assert len(theirs) == 3
    worst = 0.0
    for call in theirs:
        share = call["timestep"].float() / 1000  # diffusers counts whole thousandths of noise
        with torch.no_grad(), calls(parts.denoiser) as ours:
            family.predict(
                parts, call["sample"], share[None], family.encode(parts, [PROMPT]), sizes
            )
        asked = {**call, "timestep": call["timestep"][None].float()}
        worst = max(worst, difference(ours[0], asked, "call"))
    assert noted("call_parity", family.name, worst) < 1e-5


@pytest.mark.long
def test_a_latent_that_was_trained_is_sampled_by_diffusers(bench: Bench) -> None:
    assert overfit(bench, steps=700, rate=5e-3, inference_steps=25) < 0.15


def test_the_loss_is_that_of_the_published_convention(bench: Bench) -> None:
    """A straight line to noise, v = noise - x0, the UNet told the share of noise in thousandths."""
    z, s = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), 0.3
    loss, noise, _ = trained_loss(bench, z, s, height=SIDE, width=SIDE)
    x0, pipeline = z * 0.13025, bench.pipeline()
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        answer = pipeline.unet(
            (1 - s) * x0 + s * noise,
            torch.tensor([300.0]),
            embeds,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=embeds.dtype),
            },
        ).sample
    assert loss == pytest.approx(float((answer - (noise - x0)).square().mean()), rel=1e-5)


def test_every_sampler_is_one_of_flow(bench: Bench) -> None:
    parts = bench.parts()
    for name, order in (("ddim", 1), ("euler", 1), ("dpm++", 2), ("unipc", 2)):
        config = build_pipeline(parts, name).scheduler.config
        found = config.use_flow_sigmas, config.prediction_type, config.solver_order
        assert found == (True, "flow_prediction", order)


def test_how_a_model_of_rectified_flow_is_known(tmp_path: Path) -> None:
    """By what is said, by our own metadata, by the folder's scheduler, and by the file's name as
    Forge Neo does; written, it says so, and what its hosts need is told."""

    def kind(path: Path, said: str = "auto") -> str:
        options = BaseOptions(model=str(path), prediction_type=said)
        return load_base(options, weights=False).prediction_type

    plain = reduced_parts("sdxl", slim=True)
    file = write_single_file(plain, tmp_path / "plain.safetensors").path
    assert (kind(file), kind(file, "flow")) == ("epsilon", "flow")
    flow = reduced_parts("sdxl", prediction_type="flow_prediction", slim=True)
    written = write_single_file(flow, tmp_path / "mine.safetensors")
    assert read_metadata(written.path)["modelspec.prediction_type"] == "flow"
    assert kind(written.path) == "flow" and kind(written.path, "epsilon") == "epsilon"
    assert any("'rectified'" in w and "ModelSamplingSD3" in w for w in written.warnings)
    assert not (tmp_path / "mine.yaml").exists()
    assert find("sdxl", {}, name="noob-Rectified-flow.safetensors") == "flow_prediction"
    assert find("sdxl", {}, name="noob.safetensors") == "epsilon"
    plain.scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}
    write_folder(plain, tmp_path / "folder")
    parts = load_base(BaseOptions(model=str(tmp_path / "folder")), weights=False)
    assert parts.prediction_type == "flow"
    objective = parts.family.objective(ObjectiveOptions(), parts)
    assert objective.options.shift_factor == 2.5


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_proved(folder: Path, tmp_path: Path, method: str) -> None:
    """And what a full fine-tune writes is a base of rectified flow again."""
    pictures = draw_pictures(tmp_path / "pictures")
    config = config_for(folder, pictures, tmp_path / "run", method__kind=method, run__steps=1)
    made = train(config, proven=True)
    receipt = read_receipt(made)
    assert receipt["proof"]["passed"]
    if method == "full":
        options = BaseOptions(model=str(made.path / receipt["result"]["file"]))
        assert load_base(options, weights=False).prediction_type == "flow"


def test_options_of_diffusion_are_refused(bench: Bench) -> None:
    parts = bench.parts()
    for options, line in (
        (ObjectiveOptions(weighting="min_snr"), "not known for rectified-flow"),
        (ObjectiveOptions(zero_terminal_snr=True), "ends in pure noise as it is"),
    ):
        with pytest.raises(UserError, match=line):
            parts.family.objective(options, parts)
    assert default_scheduler("sdxl", "flow_prediction")["flow_shift"] == 3.0
