"""The engine's presets, the user's, and the memory that a run may take."""

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


def test_the_budget_is_what_is_free(presets: Presets, host: FakeHost) -> None:
    none = presets.memory_choice()
    assert none.budget == "" and "no GPU" in none.reason
    host.gpu = Memory("GPU", 24 * GIB, 11 * GIB)
    choice = presets.memory_choice()
    assert (choice.budget, choice.free_gib, choice.total_gib) == ("11264MB", 11, 24)


def test_what_was_a_memory_preset_is_a_budget(presets: Presets) -> None:
    assert presets.values("8gb-lora-sd1") == {"memory.budget": "8GB"}
    assert presets.shipped(["object-lora-sd1", "8gb"]) == ["object-lora-sd1", "8gb"]
