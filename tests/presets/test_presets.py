"""Presets load, say their version, and fit the memory that they are named for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core.commands.main import main
from dreambooth_core.config.catalogue import (
    FAMILIES,
    METHODS,
    SUBJECTS,
    TIERS,
    entries,
    memory_names,
    whole_names,
)
from dreambooth_core.config.loading import load, preset_names
from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.stock import stock_configs
from dreambooth_core.memory.estimate import GIB
from dreambooth_core.trainer.advice import USABLE
from dreambooth_core.trainer.combinations import refuse_settings
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.needs import Planner
from tools.presets import SIDES

RECIPES = [f"{s}-{m}-{f}" for s in SUBJECTS for m in METHODS for f in FAMILIES]


def test_there_is_a_recipe_for_each_subject_method_and_family() -> None:
    assert preset_names() == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_they_are_named_for(name: str) -> None:
    _, method, _ = name.split("-")
    config = load(TrainConfig, preset=name)
    assert config.run.presets == {name: "1"}
    assert config.method.kind == method
    assert config.data.resolution is None  # the base says it
    low, high = (1e-6, 2e-6) if method == "full" else (1e-4, 1e-4)
    assert config.optim.learning_rate is not None
    assert low <= config.optim.learning_rate <= high
    assert not config.optim.ema.enabled
    if name.startswith("person"):
        assert config.prior.enabled
        assert 200 <= config.prior.num_class_images <= 300


def test_every_preset_gives_its_reasons() -> None:
    for entry in entries():
        text = entry.path.read_text(encoding="utf-8")
        assert entry.version == "1"
        assert entry.about
        assert text.count("#") >= 4, entry.name


def tiers(method: str, family: str) -> list[int]:
    ending = f"gb-{method}-{family}"
    return [int(n.removesuffix(ending)) for n in memory_names() if n.endswith(ending)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_presets_fit(method: str, family: str) -> None:
    """Full-size models without weights. The smallest and the largest, which differ most."""
    configs = stock_configs(family)
    there = tiers(method, family)
    assert there == [tier for tier in TIERS if tier >= there[0]]
    peaks = {entry.name: entry.peak for entry in entries()}
    for tier in {there[0], there[-1]}:
        name = f"{tier}gb-{method}-{family}"
        both = [f"person-{method}-{family}", f"{tier}gb"]
        overrides = ["run.device=cuda", f"data.resolution={SIDES[family]}"]
        config = load(TrainConfig, preset=both, overrides=overrides)
        assert set(config.run.presets) == {both[0], name}
        peak = Planner(config, configs).needs().peak
        assert peak <= tier * GIB * USABLE
        assert peak / GIB == pytest.approx(peaks[name], abs=0.06)


def test_no_preset_combines_what_cannot_be() -> None:
    for name in memory_names():
        _, method, family = name.split("-")
        config = load(TrainConfig, preset=[f"object-{method}-{family}", name])
        refuse_settings(config, device="cuda")


def test_what_cannot_fit_names_the_smallest_that_does() -> None:
    smallest = tiers("full", "sdxl")[0]
    with pytest.raises(UserError, match=f"does not fit into 6 GB.*{smallest}gb-full-sdxl"):
        load(TrainConfig, preset=["object-full-sdxl", "6gb"])
    with pytest.raises(UserError, match="depends on the method"):
        load(TrainConfig, preset="8gb")
    with pytest.raises(UserError, match="Use 16gb-lora-sd1"):
        load(TrainConfig, preset="20gb-lora-sd1")


def test_memory_lies_over_the_recipe_whatever_the_order() -> None:
    assert whole_names(["24gb", "object-lora-sd1"]) == ["object-lora-sd1", "24gb-lora-sd1"]


def test_a_file_lies_over_presets(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("run: {steps: 7}")
    config = load(TrainConfig, preset=["object-lora-sd1", "24gb"], files=[own])
    assert config.run.steps == 7
    assert config.optim.learning_rate == 1e-4


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(RECIPES) | set(memory_names()) == set(listed)
    assert listed["6gb-lora-sd1"]["peak_gib"] < 6
    assert main(["presets", "person-full-sd1"]) == 0
    assert "800 to 1200 steps" in capsys.readouterr().out
