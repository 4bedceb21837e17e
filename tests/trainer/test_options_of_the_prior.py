"""Class images are what the options of ``prior`` say, to the last pixel."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.observed import Observed, observe
from helpers.runs import config_for
from PIL import Image

from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.randomness import seed_of

SETTINGS = SamplingSettings(
    steps=3,
    guidance=3.5,
    scheduler="euler",
    width=64,
    height=64,
    negative_prompt="blurry",
    batch_size=2,
)
CHANGES: dict[str, Any] = {
    "prior__enabled": "true",
    "prior__num_class_images": 3,
    "prior__batch_size": 2,
    "prior__num_inference_steps": 3,
    "prior__guidance_scale": 3.5,
    "prior__negative_prompt": "blurry",
    "prior__scheduler": "euler",
    "prior__seed": 5,
}


def directly(base: Path, settings: SamplingSettings, seed: int = 5, count: int = 3) -> list[bytes]:
    """The pixels of class images straight from the base, in whole batches: an image's last bit
    depends on how many are made at once."""
    parts = load_base(BaseOptions(model=str(base)))
    whole = -(-count // settings.batch_size) * settings.batch_size
    seeds = [seed_of("class image", seed, index) for index in range(whole)]
    images = generate(parts, ["a photo of a ball"] * whole, seeds, settings)
    return [image.tobytes() for image in images[:count]]


def made(folder: Path) -> list[bytes]:
    """The pixels of the class images below a folder."""
    files = sorted(folder.rglob("class-*.png"))
    return [Image.open(file).tobytes() for file in files]


def run(base: Path, pictures: Path, root: Path, **changes: Any) -> Observed:
    return observe(config_for(base, pictures, root, run__steps=1, **{**CHANGES, **changes}))


def test_class_images_are_what_the_options_say(base: Path, pictures: Path, tmp_path: Path) -> None:
    seen = run(base, pictures, tmp_path / "runs", prior__folder=tmp_path / "kept")
    assert made(tmp_path / "kept") == directly(base, SETTINGS)
    assert not made(tmp_path / "runs")
    assert [event["step"] for event in seen.progress("class_images")] == [2, 3]
    assert seen.captions == ["a photo of sks ball"] * 2 + ["a photo of a ball"] * 2


@pytest.mark.parametrize(
    "other", [{"steps": 2}, {"guidance": 7.5}, {"negative_prompt": ""}, {"scheduler": "ddim"}]
)
def test_each_of_them_would_show(base: Path, other: dict[str, Any]) -> None:
    """What the comparison above would miss if it were not so."""
    assert directly(base, SETTINGS) != directly(base, replace(SETTINGS, **other))


def test_without_a_scheduler_the_bases_own_is_taken(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(base, own)
    file = own / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"_class_name": "EulerDiscreteScheduler"}))
    run(own, pictures, tmp_path / "runs", prior__scheduler="")
    assert made(tmp_path / "runs") == directly(own, SETTINGS)


def test_a_scheduler_that_is_unknown_is_named(base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prior\.scheduler.*eulr.*euler"):
        run(base, pictures, tmp_path / "runs", prior__scheduler="eulr")


@pytest.mark.parametrize(
    ("prior", "mixed", "half"), [("fp32", "bf16", False), ("bf16", "no", True)]
)
def test_class_images_have_a_precision_of_their_own(
    base: Path, pictures: Path, tmp_path: Path, prior: str, mixed: str, half: bool
) -> None:
    changes = {"prior__precision": prior, "run__mixed_precision": mixed}
    seen = run(base, pictures, tmp_path / "runs", **changes)
    whole = directly(base, SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = directly(base, SETTINGS)
    assert whole != rough
    assert sorted(made(tmp_path / "runs")) == sorted(rough if half else whole)
    trained_on = seen.training.parts.denoiser.conv_in.weight.dtype
    assert trained_on == (torch.bfloat16 if mixed == "bf16" else torch.float32)


def test_fp16_class_images_need_a_gpu(base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prior\.precision"):
        run(base, pictures, tmp_path / "runs", prior__precision="fp16")


@pytest.mark.parametrize(("method", "text"), [("lora", "true"), ("lokr", "false")])
def test_the_bases_own_answers_can_be_preserved(
    base: Path, pictures: Path, tmp_path: Path, method: str, text: str
) -> None:
    changes = {
        "prior__enabled": "true",
        "prior__source": "prediction",
        "method__kind": method,
        "method__train_text_encoder": text,
        "run__steps": 3,
    }
    seen = observe(config_for(base, pictures, tmp_path / "runs", **changes), proven=True)
    assert not seen.progress("class_images") and not made(tmp_path / "runs")
    assert seen.captions[-4:] == ["a photo of sks ball"] * 2 + ["a photo of a ball"] * 2
    # The first step's adapter does nothing yet, and then it strays.
    losses = seen.told("class_loss")
    assert losses[0] == pytest.approx(0, abs=1e-9)
    assert losses[-1] > 1e-7
    last = seen.passes[-1].sample
    parts = load_base(BaseOptions(model=str(base)))
    with torch.no_grad():
        answer = parts.family.predict(
            parts,
            last.noisy[2:],
            last.timesteps[2:],
            parts.family.encode(parts, ["a photo of a ball"] * 2),
            [],
        )
    torch.testing.assert_close(last.target[2:], answer, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.target[:2], last.noise[:2])
    assert seen.receipt["proof"]["passed"]


def test_a_base_that_is_trained_itself_is_asked_beforehand(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    changes = {
        "prior__enabled": "true",
        "prior__source": "prediction",
        "prior__num_class_images": 4,
        "method__kind": "full",
        "optim__learning_rate": 1e-4,
        "data__cache": "disk",
        "data__flip": "true",
        "run__steps": 5,
    }
    seen = observe(config_for(base, pictures, tmp_path, **changes))
    # Each of three images twice, to reach four: six answers, that come back in ten class slots.
    assert [event["step"] for event in seen.progress("answers")] == [1, 2, 3, 4, 5, 6]
    parts = load_base(BaseOptions(model=str(base)))
    text = parts.family.encode(parts, ["a photo of a ball"])
    different = set()
    for one in seen.passes:
        own = one.captions.index("a photo of a ball")
        for place in range(own, len(one.captions)):
            each = slice(place, place + 1)
            noisy, at = one.sample.noisy[each], one.sample.timesteps[each]
            with torch.no_grad():
                answer = parts.family.predict(parts, noisy, at, text, [])
            assert torch.equal(one.sample.target[each], answer)
            different.add(noisy.numpy().tobytes())
    assert len(different) == 6
    losses = seen.told("class_loss")
    assert losses[0] == pytest.approx(0, abs=1e-9) and losses[-1] > 1e-7
    again = observe(config_for(base, pictures, tmp_path, **changes))
    assert not again.progress("answers") and again.told("loss") == seen.told("loss")
