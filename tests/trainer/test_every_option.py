"""Every configuration key is shown to do what it says by a test that really uses it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from helpers.shown import SHOWN

from dreambooth_core.config.shapes import paths
from dreambooth_core.options import TrainConfig

TESTS = Path(__file__).resolve().parents[1]


@cache
def defined(file: str) -> dict[str, ast.stmt]:
    """What a file of tests defines, by name: tests, helpers, fixtures, tables."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {t.id: node for t in targets if isinstance(t, ast.Name)}
    return found


def mentioned(file: str, test: str) -> set[str]:
    """Texts and keyword arguments of a test and of whatever of its file it uses."""
    there, waiting, seen = defined(file), [test], set()
    words: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in there:
            continue
        seen.add(name)
        for node in ast.walk(there[name]):
            if isinstance(node, ast.Constant):
                words.add(str(node.value))
            elif isinstance(node, ast.keyword) and node.arg:
                words.add(node.arg)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
            elif isinstance(node, ast.Name):
                waiting.append(node.id)
            elif isinstance(node, ast.arg):
                waiting.append(node.arg)
    return words


def test_every_key_has_a_test() -> None:
    keys = [key for key in paths(TrainConfig) if key != "concepts"]
    assert sorted(SHOWN) == sorted(keys)


@pytest.mark.parametrize("key", SHOWN)
def test_the_test_is_there_and_names_the_key(key: str) -> None:
    file, name = SHOWN[key]
    assert name in defined(file)
    last = key.rsplit(".", 1)[-1]
    words = mentioned(file, name)
    uses = [word for word in words if word == last or word.endswith((f"__{last}", f".{last}"))]
    assert uses, f"{file}::{name} never mentions {key}"
