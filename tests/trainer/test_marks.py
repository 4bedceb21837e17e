"""Runs that learn from marked images: pairs by Diffusion-DPO, in both kinds of bases."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import flow_bases
from helpers.observed import Observed, observe
from helpers.runs import config_for, folder_for, go_on, losses, train, training_of
from helpers.tiny import draw_pictures

from dreambooth_core.data.marks import Mark, write_marks
from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.randomness import generator, uniform
from dreambooth_core.trainer.state import load_state

PROMPT = "a photo of sks ball at night"
DPO: dict[str, Any] = {"objective__loss": "dpo", "objective__dpo_beta": 500, "run__steps": 2}


def marks_for(base: Path, folder: Path) -> Path:
    """Four images of one prompt, two of them good."""
    folder.mkdir()
    draw_pictures(folder, 4, (64, 64))
    names = sorted(path.name for path in folder.iterdir())
    marks = [Mark(name, PROMPT, n, ("good", "bad")[n % 2]) for n, name in enumerate(names)]
    known = load_base(BaseOptions(model=str(base))).fingerprint
    return write_marks(folder / "marks.json", known, marks).file


@pytest.fixture(scope="module")
def marks(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marks_for(base, tmp_path_factory.mktemp("generated") / "images")


@pytest.fixture(scope="module")
def start(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something already."""
    changes = {"optim__learning_rate": 0.01, "run__steps": 1}
    folder = train(config_for(base, pictures, tmp_path_factory.mktemp("start"), **changes))
    return next(folder.path.glob("*.safetensors"))


@pytest.fixture(scope="module")
def seen(
    base: Path,
    pictures: Path,
    marks: Path,
    start: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Observed:
    """Two steps with nothing but pairs."""
    changes = {"marks__file": marks, "marks__images": "none", "method__init_from": start}
    root = tmp_path_factory.mktemp("pairs")
    more = {"save__at_end": "true", "save__every_steps": 1, "method__target_modules": "query_value"}
    return observe(config_for(base, pictures, root, **DPO, **changes, **more))


def test_pairs_alone_begin_at_log_2(seen: Observed) -> None:
    first, second = seen.told("loss")
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert second != pytest.approx(math.log(2), abs=1e-6)
    assert set(seen.captions) == {PROMPT}
    # What is trained, and once more as it was; two good images beside two bad ones.
    assert len(seen.passes) == 4 and {len(one.captions) for one in seen.passes} == {4}


def test_the_loss_equals_a_direct_computation(seen: Observed, base: Path, start: Path) -> None:
    """Of the second step, from the result after the first one, merged into a base of its own."""
    training, step = seen.training, 1
    slots = training.plan.slots(step)
    (group,) = training.plan.passes(step)[0]
    both, _ = training.items.in_pairs(group)
    latents = training.samples.latents(both, step)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    errors = []
    for file in (seen.folder.path / "run-000001.safetensors", start):
        parts = load_base(BaseOptions(model=str(base)))
        AdapterStack(parts.models).load("it", read_adapter(file), 1.0)
        found = []
        for place, slot in enumerate(both):
            key = ("train", 0, step, slot.number)
            noise = torch.randn(latents.shape[1:], generator=generator(*key, "noise"))[None]
            at = torch.tensor([int(uniform(*key, "timestep") * 1000)])
            noisy = scheduler.add_noise(latents[place : place + 1], noise, at)
            with torch.no_grad():
                text = parts.family.encode(parts, [PROMPT])
                answer = parts.family.predict(parts, noisy, at, text, [])
            found.append((answer - noise).square().mean())
        errors.append(torch.stack(found).reshape(2, len(slots)))
    now, before = errors
    won, lost = now - before
    expected = torch.log1p(torch.exp(250 * (won - lost))).mean()
    assert seen.told("loss")[1] == pytest.approx(float(expected), rel=2e-3)
    assert abs(float(expected) - math.log(2)) > 1e-5


def test_other_images_and_class_images_train_beside_pairs(
    base: Path, pictures: Path, marks: Path, tmp_path: Path
) -> None:
    changes = {"marks__file": marks, "run__batch_size": 7, "run__steps": 1}
    preserved = {"prior__enabled": "true", "prior__source": "prediction"}
    seen = observe(config_for(base, pictures, tmp_path, **{**DPO, **changes}, **preserved))
    trained, compared = seen.passes
    # Three images of its own, two good ones that join, two pairs; a class image beside each.
    assert trained.captions.count(PROMPT) == 6 and len(trained.captions) == 16
    assert compared.captions == [PROMPT] * 4
    own = (trained.losses[4:9].sum() + 2 * math.log(2)) / 7
    assert seen.told("instance_loss") == pytest.approx([float(own)], rel=1e-5)
    assert seen.told("class_loss") == pytest.approx([0.0], abs=1e-9)


def test_good_images_alone_are_images_like_others(
    base: Path, pictures: Path, marks: Path, tmp_path: Path
) -> None:
    changes = {"marks__file": marks, "run__batch_size": 5, "run__steps": 1}
    seen = observe(config_for(base, pictures, tmp_path, **changes))
    assert seen.captions.count(PROMPT) == 2 and len(seen.captions) == 5


def test_a_rectified_flow_base_learns_from_pairs(pictures: Path, tmp_path: Path) -> None:
    base = flow_bases.sd3(tmp_path / "sd3")
    changes = {"marks__file": marks_for(base, tmp_path / "images"), "marks__images": "none"}
    more = {"method__train_text_encoder": "false", "optim__learning_rate": 0.01}
    seen = observe(config_for(base, pictures, tmp_path / "runs", **DPO, **changes, **more))
    first, second = seen.told("loss")
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert abs(second - math.log(2)) > 1e-6
    trained, compared = seen.passes[-2:]
    assert not torch.equal(trained.prediction, compared.prediction)
    assert torch.equal(trained.sample.noise[:2], trained.sample.noise[2:])


def test_it_resumes_exactly(seen: Observed, tmp_path: Path) -> None:
    config = seen.training.config
    folder = folder_for(replace(config, run=replace(config.run, output=str(tmp_path))))
    first = saved_steps(seen.folder.checkpoints)[1]
    shutil.copytree(first, folder.checkpoints / first.name)
    go_on(folder)
    assert losses(folder)[2] == losses(seen.folder)[2]
    one, other = (load_state(saved_steps(f.checkpoints)[2]) for f in (folder, seen.folder))
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    with pytest.raises(UserError, match="compared_with"):
        go_on(folder, method__init_from="", run__steps=3)


def test_marks_of_another_base_are_refused_before_anything_is_made(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    draw_pictures(tmp_path, 1, (64, 64))
    name = next(tmp_path.glob("*.png")).name
    file = write_marks(tmp_path / "marks.json", "another", [Mark(name, PROMPT, 0, "good")]).file
    config = config_for(base, pictures, tmp_path / "runs", marks__file=file)
    with pytest.raises(UserError, match="another base"):
        training_of(config, folder_for(config))
