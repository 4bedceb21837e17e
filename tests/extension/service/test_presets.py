"""The engine's presets, the user's, and which memory preset fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fake_host import FakeHost

from dreambooth_core.errors import UserError
from extension.host.base import Memory
from extension.service.presets import Presets

GIB = 1024**3


@pytest.fixture
def presets(host: FakeHost) -> Presets:
    return Presets(Path(), host)


def test_a_recipe_by_dotted_keys(presets: Presets) -> None:
    values = presets.values("object-lora-sd1")
    assert values["method.kind"] == "lora"
    assert not any(key.startswith((".", "run.presets")) for key in values)
    assert presets.recipe("person", "loha", "sdxl") == "person-lora-sdxl"
    assert presets.recipe("person", "full", "flux") == ""


def test_the_users_own(presets: Presets) -> None:
    values = {"run.seed": 7, "concepts[0].images": "/dog", "validation.prompts": ["a", "b"]}
    assert presets.save("mine", values).kind == "own"
    assert presets.values("mine") == values
    assert presets.all()[-1].name == "mine"
    presets.delete("mine")
    with pytest.raises(UserError, match="no preset named"):
        presets.values("mine")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("object-lora-sd1", {}, "a preset of the engine"),
        ("  ", {}, "has no name"),
        ("mine", {"run.seed": -1}, "too small"),
        ("mine", {"run.sed": 1}, "unknown key"),
    ],
)
def test_what_cannot_be_saved(presets: Presets, name: str, values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        presets.save(name, values)


@pytest.mark.parametrize("name", ["../mine", "/etc/passwd", "memory/8gb-lora-sd1", "..", ""])
def test_a_name_is_no_path(presets: Presets, name: str) -> None:
    with pytest.raises(UserError):
        presets.file(name)


def test_the_engines_own_stay(presets: Presets) -> None:
    with pytest.raises(UserError, match="stays"):
        presets.delete("object-lora-sd1")


def test_the_largest_that_fits(presets: Presets, host: FakeHost) -> None:
    assert "no GPU" in presets.memory_choice("sd1", "lora").reason
    chosen = []
    for free in (3.0, 8.0, 11.0, 23.5):
        host.gpu = Memory("GPU", 24 * GIB, int(free * GIB))
        choice = presets.memory_choice("sdxl", "loha")
        assert (choice.free_gib, choice.total_gib) == (free, 24)
        chosen.append(choice.name)
        if choice.name:
            assert (presets._peak(choice.name) or 99) <= free
    assert chosen[0] == "" and chosen[-1].endswith("-lora-sdxl")
    sizes = [int(name.partition("gb")[0]) for name in chosen if name]
    assert sizes == sorted(sizes) and len(set(sizes)) > 1
    assert "no memory preset" in presets.memory_choice("flux", "lora").reason
