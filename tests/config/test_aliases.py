"""Names that fields had before: still read, said once, never written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dreambooth_core.config.describe import flatten, renamed
from dreambooth_core.config.loading import dump, load, mark
from dreambooth_core.config.shapes import members, tell_renamed
from dreambooth_core.errors import UserError
from dreambooth_core.options import TrainConfig

OLD = """
run: {accumulation: 3}
objective: {offset_noise: 0.1, weighting: debiased}
method: {targets: all, token: zwx}
optim: {schedule: cosine, warmup_steps: 2}
"""


def config(text: str, folder: Path, *overrides: str) -> TrainConfig:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load(TrainConfig, files=[file], overrides=overrides)


def test_old_names_are_read_and_new_ones_written(tmp_path: Path) -> None:
    found = config(OLD, tmp_path, "data.keep_tags=2", "objective.weighting=debiased")
    flat = flatten(found)
    assert flat["run.gradient_accumulation_steps"] == 3
    assert flat["objective.noise_offset"] == 0.1
    assert flat["objective.weighting"] == "debiased_estimation"
    assert (flat["method.target_modules"], flat["method.placeholder_token"]) == ("all", "zwx")
    assert (flat["optim.lr_scheduler"], flat["optim.lr_warmup_steps"]) == ("cosine", 2)
    assert flat["data.keep_tokens"] == 2
    again = config(dump(found), tmp_path)
    assert again == found
    assert "accumulation: " not in dump(found).replace("gradient_accumulation_steps: ", "")


def test_an_old_name_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_renamed.cache_clear()
    with caplog.at_level(logging.WARNING):
        config(OLD, tmp_path)
        config(OLD, tmp_path, "run.accumulation=1")
    said = [r.getMessage() for r in caplog.records if "gradient_accumulation" in r.getMessage()]
    assert said == [
        "accumulation is called gradient_accumulation_steps now; the old name goes with the next "
        "version"
    ]


def test_both_names_at_once_are_one_key_twice(tmp_path: Path) -> None:
    text = "run: {accumulation: 3, gradient_accumulation_steps: 4}"
    with pytest.raises(UserError, match="gradient_accumulation_steps is set twice"):
        config(text, tmp_path)


def test_values_of_forms_and_requests_take_old_names() -> None:
    old = {"run.accumulation": 3, "concepts[0].images": "/x", "run.nonsense": 1}
    assert renamed(TrainConfig, old) == {
        "run.gradient_accumulation_steps": 3,
        "concepts[0].images": "/x",
        "run.nonsense": 1,
    }
    assert mark(TrainConfig, {"run.accumulation": 2}) == {}
    assert "run.accumulation" in mark(TrainConfig, {"run.accumulation": 0})


def test_a_field_may_have_come_from_another_section(tmp_path: Path) -> None:
    """Also where a run wrote down both, as those of earlier versions have."""
    for text, weight in (
        ("objective: {mask_floor: 0.5}", 0.5),
        ("objective: {mask_floor: 0.5}\ndata: {unmasked_weight: 0.0}", 0.5),
        ("data: {unmasked_weight: 0.25}\nobjective: {mask_floor: 0.0, loss: l1}", 0.25),
    ):
        found = config(text, tmp_path)
        assert found.data.unmasked_weight == weight
        assert "mask_floor" not in dump(found)
    with pytest.raises(UserError, match="unmasked_weight is set twice"):
        config("objective: {mask_floor: 0.5}\ndata: {unmasked_weight: 0.25}", tmp_path)
    assert config("", tmp_path, "objective.mask_floor=0.5").data.unmasked_weight == 0.5
    assert renamed(TrainConfig, {"objective.mask_floor": 1}) == {"data.unmasked_weight": 1}
    assert "objective.mask_floor" in mark(TrainConfig, {"objective.mask_floor": 2.0})
    with pytest.raises(UserError, match="too large"):
        config("objective: {mask_floor: 2}", tmp_path)


def test_no_old_name_is_taken_twice() -> None:
    def check(schema: type) -> None:
        names = list(members(schema))
        for member in members(schema).values():
            names += member.info.aliases
            inner = member.shape.item or member.shape
            if inner.schema is not None:
                check(inner.schema)
        assert len(names) == len(set(names))

    check(TrainConfig)
