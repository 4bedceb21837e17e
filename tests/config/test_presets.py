"""Presets load, say their version and their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core.commands.main import main
from dreambooth_core.config.catalogue import FAMILIES, METHODS, SUBJECTS, entries, names, recipe
from dreambooth_core.config.loading import load
from dreambooth_core.options import TrainConfig

RECIPES = [f"{s}-{m}-{f}" for s in SUBJECTS for m in METHODS for f in FAMILIES]
RECIPES += [f"{subject}-lora-flow" for subject in SUBJECTS]


def test_there_is_a_recipe_for_each_subject_method_and_family() -> None:
    assert names() == sorted(RECIPES)


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
    if name.startswith("person") and not name.endswith("flow"):
        assert config.prior.enabled
        assert 200 <= config.prior.num_class_images <= 300


def test_the_recipe_of_a_family() -> None:
    assert recipe("object", "lora", "sdxl") == "object-lora-sdxl"
    assert recipe("person", "lora", "z_image") == "person-lora-flow"
    assert recipe("person", "full", "z_image") == ""
    assert recipe("object", "lora", "") == ""


def test_every_preset_gives_its_reasons() -> None:
    for entry in entries():
        assert entry.version == "1"
        assert entry.about and "{" not in entry.about
        assert entry.text.count("#") >= 4, entry.name


def test_what_differs_for_a_family_goes_over_the_rest() -> None:
    text = {entry.name: entry.text for entry in entries()}
    assert "# Faces gain most" in text["person-lora-sd1"]
    assert "# Faces gain most" not in text["person-lora-sdxl"]
    assert "# Two text encoders are large" in text["person-lora-sdxl"]
    steps = [load(TrainConfig, preset=f"{one}-lora-flow").run.steps for one in SUBJECTS]
    assert steps == [1000, 1500, 2000]


def test_what_was_a_memory_preset_sets_the_budget() -> None:
    for name, size in (("8gb", "8GB"), ("24gb-full-sdxl", "24GB")):
        config = load(TrainConfig, preset=["object-lora-sd1", name])
        assert config.memory.budget == size
        assert config.method.kind == "lora"
    assert load(TrainConfig, preset="8gb", overrides=["memory.budget=auto"]).memory.budget == "auto"


def test_a_file_lies_over_presets(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("run: {steps: 7}")
    by_hand: set[str] = set()
    config = load(TrainConfig, preset="object-lora-sd1", files=[own], by_hand=by_hand)
    assert "run.steps" in by_hand and "method.rank" not in by_hand
    assert config.run.steps == 7
    assert config.optim.learning_rate == 1e-4


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(RECIPES) == set(listed)
    assert main(["presets", "person-full-sd1"]) == 0
    assert "800 to 1200 steps" in capsys.readouterr().out
