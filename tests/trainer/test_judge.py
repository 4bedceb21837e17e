"""Images tell which step is best, where the user wants them to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.observed import observe
from helpers.runs import config_for, folder_for, training_of
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreambooth_core.trainer import best as judging
from dreambooth_core.trainer.best import Look, Record

BASE = Look(likeness=0.3, prompt=0.6, drift=0.3)
CHANGES: dict[str, Any] = {
    "save__best": "true",
    "save__best_by": "images",
    "save__every_steps": 2,
    "validation__num_inference_steps": 1,
    "optim__learning_rate": 0.1,
    "run__steps": 4,
}


def test_the_subject_counts_as_long_as_prompt_and_class_stay() -> None:
    near = Look(likeness=0.8, prompt=0.56, drift=0.34)
    assert near.score(BASE) == 0.8
    forgot = Look(likeness=0.9, prompt=0.35, drift=0.3)
    assert forgot.score(BASE) == pytest.approx(0.9 - 0.2)
    took = Look(likeness=0.9, prompt=0.6, drift=0.6)
    assert took.score(BASE) == pytest.approx(0.9 - 0.25)


def test_the_highest_score_is_best_whatever_the_loss() -> None:
    record = Record({1: 0.1, 2: 0.2, 3: 0.3}, {1: 0.5, 2: 0.9, 3: 0.9})
    assert (record.best, record.worse()) == (2, 1)


class Pixels:
    """Images as they are, and texts as nothing in particular."""

    def identities(self, pictures: Sequence[Image.Image]) -> Tensor:
        small = [list(one.convert("RGB").resize((4, 4)).tobytes()) for one in pictures]
        return F.normalize(torch.tensor(small).float() - 127.5, dim=-1)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.identities(images)

    def captions(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.ones(len(texts), 48), dim=-1)


def test_images_are_judged_at_each_save(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "load_encoders", lambda *given: Pixels())
    seen = observe(config_for(base, pictures, tmp_path, **CHANGES))
    measured = [e for e in seen.folder.events if e["kind"] == "measured"]
    assert [e["step"] for e in measured] == [2, 4]
    one, other = measured
    assert one["likeness"] != other["likeness"] and "held_out_loss" not in one
    assert 0 < one["diversity"] != other["diversity"]
    best = max(measured, key=lambda e: (e["score"], -e["step"]))
    result = seen.receipt["result"]
    assert (result["best_step"], result["best_score"]) == (best["step"], best["score"])
    assert (seen.folder.path / "run-best.safetensors").is_file()
    # Judging disturbs nothing: the same steps without it are the same to the bit.
    plain = {**CHANGES, "save__best": "false", "run__name": "plain"}
    assert observe(config_for(base, pictures, tmp_path, **plain)).told("loss") == seen.told("loss")


@pytest.mark.parametrize(("asked", "own", "of_class"), [(8, 8, 8), (2, 2, 8), (20, 20, 20)])
def test_as_many_images_are_judged_as_asked_for(
    base: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: int,
    own: int,
    of_class: int,
) -> None:
    monkeypatch.setattr(judging, "load_encoders", lambda *given: Pixels())
    monkeypatch.setattr(judging.Judge, "look", lambda *given: BASE)
    config = config_for(base, pictures, tmp_path, **CHANGES, save__best_images=asked)
    judge = training_of(config, folder_for(config)).best.judge
    assert judge is not None
    assert sum(task.of_class for task in judge.tasks) == of_class
    prompts = [task.prompt for task in judge.tasks if not task.of_class]
    assert len(prompts) == own and len(set(prompts)) == max(1, asked // 2)


def test_without_encoders_the_run_goes_on(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("dreambooth_core.evaluation.encoders.CLIP", str(tmp_path / "none"))
    seen = observe(config_for(base, pictures, tmp_path, **{**CHANGES, "run__steps": 1}))
    warnings = [e["message"] for e in seen.folder.events if e["kind"] == "warning"]
    assert any(
        "images are not judged" in text and "not on this machine" in text for text in warnings
    )
    assert seen.receipt["result"]["steps"] == 1
    assert not [e for e in seen.folder.events if e["kind"] == "measured"]
