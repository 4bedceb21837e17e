"""What each option of ``base``, ``concepts``, ``data`` and ``prior`` does in a real run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers.observed import Observed, observe
from helpers.runs import config_for
from helpers.tiny import draw_pictures, tiny_sd1
from PIL import Image

from dreambooth_core.data.concept_options import ConceptOptions
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.fingerprint import fingerprint

Once = Callable[..., Observed]


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny SD1, with weights of its own."""
    return tiny_sd1(tmp_path_factory.mktemp("other"), seed=1)


def test_revision_and_variant_choose_the_hubs_files(
    base: Path, other_base: Path, tmp_path: Path, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variant's files are another model's, which tells what was read."""
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for file in other_base.glob("*/*.safetensors"):
        named = f"{file.stem}.fp16.safetensors"
        shutil.copy(file, both / file.parent.name / named)
    asked: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(both)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    seen = once(base__model="owner/name", base__revision="v2", base__variant="fp16")
    assert {(name, revision) for name, revision, _ in asked} == {("owner/name", "v2")}
    assert all("*/*.fp16.safetensors" in patterns for _, _, patterns in asked)
    expected = load_base(BaseOptions(model=str(other_base))).fingerprint
    assert seen.receipt["base"]["fingerprint"] == expected


def test_another_vae_encodes_the_pictures(other_base: Path, once: Once, plain: Observed) -> None:
    seen = once(base__vae=other_base / "vae")
    own = load_base(BaseOptions(model=str(other_base))).vae
    assert fingerprint(seen.training.parts.vae) == fingerprint(own)
    assert torch.equal(seen.passes[0].sample.noise, plain.passes[0].sample.noise)
    assert not torch.allclose(seen.passes[0].clean, plain.passes[0].clean, atol=1e-2)


def test_the_prediction_type_can_be_told(once: Once) -> None:
    seen = once(base__prediction_type="v_prediction")
    one = seen.passes[0]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - betas).cumprod(0)[one.sample.timesteps].view(-1, 1, 1, 1)
    velocity = kept.sqrt() * one.sample.noise - (1 - kept).sqrt() * one.clean
    torch.testing.assert_close(one.sample.target, velocity, rtol=1e-4, atol=1e-5)
    assert seen.receipt["base"]["prediction_type"] == "v_prediction"


def test_clip_skip_and_prompt_chunks_reach_the_unet(once: Once, plain: Observed) -> None:
    seen = once(base__clip_skip=2, base__max_prompt_chunks=1)
    assert torch.equal(seen.passes[0].sample.noisy, plain.passes[0].sample.noisy)
    assert not torch.equal(seen.passes[0].prediction, plain.passes[0].prediction)
    assert (seen.training.parts.clip_skip, seen.training.parts.max_prompt_chunks) == (2, 1)


def test_a_concept_has_prompts_class_pictures_repeats_and_a_name(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    own = draw_pictures(tmp_path / "cubes", 1)
    classes = draw_pictures(tmp_path / "classes", 1, (64, 64))
    changes: dict[str, Any] = {
        "prior__enabled": "true",
        "prior__num_inference_steps": 1,
        "prior__num_class_images": 1,
    }
    config = config_for(base, pictures, tmp_path / "runs", run__steps=3, **changes)
    config.concepts.append(
        ConceptOptions(
            images=str(own),
            instance_prompt="a [name] cube",
            class_prompt="a cube",
            class_images=str(classes),
            num_class_images=2,
            repeats=3,
            name="Bo",
        )
    )
    seen = observe(config)
    ball, cube = seen.receipt["data"]["concepts"]
    assert (ball["showings_per_epoch"], cube["showings_per_epoch"]) == (3, 3)
    assert (ball["class_images_used"], cube["class_images_used"]) == (1, 2)
    assert cube["name"] == "Bo"
    assert len(list(classes.glob("*.png"))) == 2
    wanted = ["a Bo cube", "a cube", "a photo of a ball", "a photo of sks ball"]
    assert sorted(seen.captions) == sorted(wanted * 3)


def test_small_concepts_can_be_balanced(base: Path, pictures: Path, tmp_path: Path) -> None:
    own = draw_pictures(tmp_path / "cubes", 1)
    changes = {"data__balance_concepts": "true", "run__steps": "null", "run__epochs": 1}
    config = config_for(base, pictures, tmp_path / "runs", **changes)
    config.concepts.append(ConceptOptions(images=str(own), instance_prompt="a cube"))
    assert sorted(observe(config).captions) == ["a cube"] * 3 + ["a photo of sks ball"] * 3


@pytest.mark.parametrize(
    ("changes", "latents"),
    [
        ({"data__resolution": 128, "data__height": 64}, (8, 16)),
        ({"data__resolution": 128, "data__width": 64}, (16, 8)),
    ],
)
def test_the_size_of_pictures(
    changes: dict[str, Any], latents: tuple[int, int], once: Once, plain: Observed
) -> None:
    assert plain.passes[0].clean.shape[-2:] == (8, 8)
    assert once(**changes).passes[0].clean.shape[-2:] == latents


def test_several_resolutions_of_each_picture(once: Once, plain: Observed) -> None:
    """Each in buckets of its own; an epoch has all of them."""
    seen = once(data__resolutions="[128]", run__steps="null", run__epochs=1)
    assert seen.receipt["data"]["buckets"] == {"64x64": 3, "128x128": 3}
    sides = [side for one in seen.passes for side in [one.clean.shape[-1]] * len(one.clean)]
    assert sorted(sides) == [8] * 3 + [16] * 3
    assert seen.progress("latents")[-1]["steps"] == 6


@pytest.mark.parametrize(
    ("step", "stretch", "bucket"), [(16, 2.0, "80x48"), (16, 1.5, "96x32"), (64, 2.0, "64x64")]
)
def test_buckets(
    step: int, stretch: float, bucket: str, base: Path, tmp_path: Path, plain: Observed
) -> None:
    """Pictures of 160 x 64: the best of the shapes that there are."""
    wide = draw_pictures(tmp_path / "wide", 2, (160, 64))
    options = {"crop": "bucket", "bucket_reso_steps": step, "bucket_stretch": stretch}
    changes = {f"data__{name}": value for name, value in options.items()}
    seen = observe(config_for(base, wide, tmp_path / "runs", run__steps=1, **changes))
    assert seen.receipt["data"]["buckets"] == {bucket: 2}
    width, height = map(int, bucket.split("x"))
    assert seen.passes[0].clean.shape == (2, 4, height // 8, width // 8)


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({"data__crop": "random", "data__crop_positions": 3}, 9),
        ({"data__crop": "random", "data__crop_positions": 0}, None),
        ({"data__flip": "true"}, 6),
        ({"data__rotation": 8.0, "data__variants": 2}, 9),
        ({"data__color_jitter": 0.2, "data__variants": 1, "data__flip": "true"}, 12),
        ({"data__color_jitter": 0.2, "data__variants": 0}, None),
    ],
)
def test_every_view_of_three_pictures_is_encoded_beforehand(
    changes: dict[str, Any], views: int | None, once: Once, plain: Observed
) -> None:
    seen = once(run__steps=3, **changes)
    told = seen.progress("latents")
    assert (told[-1]["steps"] if told else None) == views
    assert plain.progress("latents")[-1]["steps"] == 3
    assert any(
        not torch.equal(one.clean, other.clean)
        for one, other in zip(seen.passes, plain.passes, strict=True)
    )


def test_transparent_pictures_are_laid_on_the_background(base: Path, tmp_path: Path) -> None:
    (tmp_path / "clear").mkdir()
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(tmp_path / "clear" / "one.png")
    changes = {"data__background": "black", "run__steps": 1}
    seen = observe(config_for(base, tmp_path / "clear", tmp_path / "runs", **changes))
    items, slot = seen.training.items, seen.training.plan.slots(0)[0]
    pixels = items.pixels(items.image(slot), slot.view)
    assert torch.equal(pixels, torch.full((3, 64, 64), -1.0))


def test_subfolders_can_be_left_out(base: Path, tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "some", 1)
    draw_pictures(folder / "more", 2)
    taken = []
    for wanted in ("true", "false"):
        changes = {"data__subfolders": wanted, "run__steps": 1}
        seen = observe(config_for(base, folder, tmp_path / "runs", **changes))
        taken.append(len(seen.receipt["data"]["concepts"][0]["images"]["taken"]))
    assert taken == [3, 1]


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "one, two, three, four"),
        ({"data__captions": "prompt"}, "a photo of sks ball"),
        ({"data__templates": "['art: [prompt]']"}, "art: one, two, three, four"),
        ({"data__caption_tag_dropout_rate": 1.0}, "one"),
        ({"data__caption_tag_dropout_rate": 1.0, "data__keep_tokens": 2}, "one, two"),
        ({"data__caption_dropout_rate": 1.0}, ""),
    ],
)
def test_captions(changes: dict[str, Any], caption: str, base: Path, tmp_path: Path) -> None:
    seen = observe(
        config_for(base, captioned(tmp_path), tmp_path / "runs", run__steps=2, **changes)
    )
    assert seen.captions == [caption] * 2


def test_tags_are_shuffled_behind_those_that_stay(base: Path, tmp_path: Path) -> None:
    changes = {"data__shuffle_caption": "true", "data__keep_tokens": 1, "run__steps": 8}
    found = observe(config_for(base, captioned(tmp_path), tmp_path / "runs", **changes)).captions
    assert all(text.startswith("one, ") for text in found)
    assert {tuple(sorted(text.split(", "))) for text in found} == {("four", "one", "three", "two")}
    assert len(set(found)) > 2


def captioned(root: Path) -> Path:
    """A picture with tags beside it."""
    folder = draw_pictures(root / "captioned", 1)
    (folder / "ball-0.txt").write_text("one, two, three, four")
    return folder


@pytest.mark.parametrize(
    ("changes", "outside"),
    [
        ({"data__masks": "files"}, 0.0),
        ({"data__masks": "files", "data__unmasked_weight": 0.25}, 0.25),
        ({"data__masks": "files", "objective__mask_floor": 0.5}, 0.5),
        ({"data__masks": "alpha"}, 0.0),
    ],
)
def test_masks_weight_the_loss(
    changes: dict[str, Any], outside: float, base: Path, tmp_path: Path
) -> None:
    """The left half counts, the right half as much as the options say."""
    folder = tmp_path / "masked"
    folder.mkdir()
    half = np.zeros((64, 64), dtype=np.uint8)
    half[:, :32] = 255
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    if changes["data__masks"] == "alpha":
        picture.putalpha(Image.fromarray(half))
    else:
        Image.fromarray(half).save(folder / "one.mask.png")
    picture.save(folder / "one.png")
    seen = observe(config_for(base, folder, tmp_path / "runs", run__steps=1, **changes))
    one = seen.passes[0]
    square = (one.prediction - one.sample.target).square()
    left, right = square[..., :4].mean(), square[..., 4:].mean()
    expected = float((left + outside * right) / (1 + outside))
    assert seen.told("loss") == pytest.approx([expected], rel=1e-5)


def test_the_cache_can_be_on_disk_in_memory_or_nowhere(
    base: Path, pictures: Path, tmp_path: Path, plain: Observed
) -> None:
    def run(**changes: Any) -> Observed:
        return observe(config_for(base, pictures, tmp_path / "runs", run__steps=3, **changes))

    here = run(data__cache="disk")
    kept = list((tmp_path / "runs" / ".cache").rglob("*.cache"))
    assert len(kept) == 3 + 1  # pictures and captions
    elsewhere = {"data__cache": "disk", "data__cache_folder": tmp_path / "kept"}
    first, second = run(**elsewhere), run(**elsewhere)
    assert {p.name for p in (tmp_path / "kept").rglob("*.cache")} == {p.name for p in kept}
    assert len(first.progress("latents")) == 3 and len(first.progress("texts")) == 1
    assert not second.progress("latents") and not second.progress("texts")
    without = run(data__cache="none")
    assert not without.progress("latents") and not without.progress("texts")
    for seen in (here, first, second, without):
        assert seen.told("loss") == plain.told("loss")


def test_pictures_can_be_encoded_several_at_once(once: Once, plain: Observed) -> None:
    seen = once(data__cache_batch_size=2)
    assert [event["step"] for event in plain.progress("latents")] == [1, 2, 3]
    assert [event["step"] for event in seen.progress("latents")] == [2, 3]
