"""pocket-flow: stored without what pocket has, put together when asked for, read by diffusers."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth_core.bases.embedded import EMBEDDED, embedded_folder, whole_folder
from dreambooth_core.bases.locate import is_on_hub, locate
from dreambooth_core.errors import SaveFailed
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig
from dreambooth_core.randomness import generator
from tools.pocket import classifier, measure
from tools.pocket.captions import template

NAME = "pocket-flow"
SHARED = Path("vae") / "diffusion_pytorch_model.safetensors"


def _bytes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_it_is_small_and_repeats_nothing() -> None:
    own, other = embedded_folder(NAME), embedded_folder()
    files = [file for file in own.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt")]
    assert not {*_bytes(own).values()} & {*_bytes(other).values()}
    index = json.loads((own / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "ZImagePipeline"


def test_it_is_put_together_once_in_the_users_cache(own_cache: Path) -> None:
    whole = locate(NAME)
    assert whole.is_relative_to(own_cache)
    assert (whole / SHARED).read_bytes() == (embedded_folder() / SHARED).read_bytes()
    assert not (whole / "shared.json").exists()
    found = _bytes(whole)
    os.utime(whole / "model_index.json", (1, 1))
    assert locate(NAME) == whole
    assert (whole / "model_index.json").stat().st_mtime == 1
    assert _bytes(whole) == found
    assert all(not is_on_hub(name) for name in EMBEDDED)


def test_what_is_whole_stays_where_it_is() -> None:
    assert whole_folder(EMBEDDED[0]) == embedded_folder()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(blocked))
    monkeypatch.setattr(Path, "home", lambda: blocked)
    with pytest.raises(SaveFailed, match="file"):
        locate(NAME)


def test_stock_diffusers_draws_the_same() -> None:
    parts = load_base(BaseOptions(model=NAME))
    assert (parts.family.name, parts.native_size) == ("z_image", 128)
    text = "a photo of a red star"
    for model in parts.models.values():
        model.float()
    settings = SamplingSettings(steps=2, guidance=4.0, width=64, height=64)
    [ours] = generate(parts, [text], [3], settings)
    stock = DiffusionPipeline.from_pretrained(locate(NAME), torch_dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    [theirs] = stock(
        [text],
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.0,  # counted from 0 there
        generator=[generator("image", 3)],
    ).images
    assert np.abs(_pixels(ours) - _pixels(theirs)).max() <= 1


def test_it_draws_what_is_asked_for() -> None:
    wanted = measure.prompts(2, 1)
    texts = [template(w["colour"], w["pattern"], w["shape"], w["background"]) for w in wanted]
    parts = load_base(BaseOptions(model=NAME))
    parts.denoiser.float()
    made = generate(parts, texts, [1, 2], SamplingSettings(steps=6, guidance=5.0))
    assert made[0].size == (128, 128)
    shares, _ = measure.judge(classifier.load(), made, wanted)
    assert shares["colour"] == shares["background"] == 1


def test_its_own_size_is_what_auto_means(tmp_path: Path) -> None:
    config = TrainConfig()
    config.base.model = NAME
    assert Planner(config).config.data.resolution == 128


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)
