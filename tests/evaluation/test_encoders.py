"""A base with encoders and prompts of its own is judged by those."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dreambooth_core.bases.embedded import ASSETS, EMBEDDED
from dreambooth_core.bases.locate import locate
from dreambooth_core.evaluation.encoders import load_encoders, own_folder
from dreambooth_core.evaluation.measures import measure
from dreambooth_core.evaluation.protocol import prompts_for, tasks


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_base_judges_its_own_images(tmp_path: Path, name: str) -> None:
    base = locate(name)
    assert own_folder(base) is not None and own_folder(tmp_path) is None
    prompts = prompts_for("thing", own_folder(base))
    assert len(prompts) == 9 and "{} on a night background" in prompts
    encoders = load_encoders(base, torch.device("cpu"))
    stars = sorted((ASSETS / "demo" / "star").glob("*.png"))
    images = [Image.open(file).convert("RGB") for file in stars]
    grounds = [file.stem.rsplit("-", 1)[1] for file in stars]
    right = tasks(tuple(f"{{}} on a {g} background" for g in grounds), "a star", "", 1, 0)
    wrong = tasks(tuple(f"{{}} on a {g} background" for g in grounds[::-1]), "a star", "", 1, 0)
    found = measure(encoders, right, images, images)
    other = measure(encoders, wrong, images, [Image.new("RGB", (128, 128), "red")])
    assert found["subject"].value > other["subject"].value + 0.2
    assert found["clip_t"].value > other["clip_t"].value
