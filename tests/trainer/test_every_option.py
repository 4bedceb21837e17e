"""Every configuration key is shown to do what it says by a test that really uses it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from helpers.shown import SHOWN

from dreambooth_core.config.shapes import paths
from dreambooth_core.trainer.config import TrainConfig

TESTS = Path(__file__).resolve().parents[1]


@cache
def looked_into(file: str) -> tuple[set[str], set[str]]:
    """The tests of a file, and the texts and keyword arguments that it has."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    words = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    words |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    return tests, words


def test_every_key_has_a_test() -> None:
    keys = [key for key in paths(TrainConfig) if key != "concepts"]
    assert sorted(SHOWN) == sorted(keys)


@pytest.mark.parametrize("key", SHOWN)
def test_the_test_is_there_and_names_the_key(key: str) -> None:
    file, name = SHOWN[key]
    tests, words = looked_into(file)
    assert name in tests
    last = key.rsplit(".", 1)[-1]
    uses = [word for word in words if word == last or word.endswith((f"__{last}", f".{last}"))]
    assert uses, f"{file} never sets {key}"
