"""Every word that the tab says has a Chinese translation, in the format of the WebUI's own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config import catalogue
from dreambooth_core.config.describe import describe
from dreambooth_core.jobs.stages import STAGES
from dreambooth_core.options import TrainConfig

ROOT = Path(__file__).parents[3]
TAB = ROOT / "extension" / "tab"
FIRST = {
    "span": 1,
    "div": 1,
    "note": 1,
    "tag": 1,
    "chip": 1,
    "heading": 1,
    "button": 0,
    "TabItem": 0,
}
"""Functions that take words, and the first argument that is one."""
FIRST |= {"Accordion": 0, "Wrong": 1}
KEYWORDS = {"label", "info", "placeholder"}
TABLES = {"STATES", "VERBS", "HINTS", "TITLES", "COLUMNS", "KINDS", "LABELS", "AUTO"}
SAME = re.compile(r"[\W\d_]*|/path/to/pictures|a photo of .*|my-dog|B|s/step|steps/s", re.ASCII)
"""What is the same in every language: signs, examples, units."""


@pytest.fixture(scope="module")
def chinese() -> dict[str, str]:
    text = (ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8")
    words: dict[str, str] = json.loads(text)
    return words


def texts(node: ast.AST) -> Iterator[str]:
    """The string literals in an expression; those of f-strings and of calls are not texts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, (ast.IfExp, ast.BoolOp)):
        for each in [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values:
            yield from texts(each)
    elif isinstance(node, (ast.Tuple, ast.List)):
        for each in node.elts:
            yield from texts(each)
    elif isinstance(node, ast.Dict):
        for each in node.values:
            yield from texts(each)


def said(path: Path) -> Iterator[str]:
    """The words in one module that reach a page."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in TABLES:
            yield from texts(node.value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in FIRST:
                for argument in node.args[FIRST[name] :]:
                    yield from texts(argument)
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS:
                    yield from texts(keyword.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in KEYWORDS:
                    yield from texts(value)
        elif isinstance(node, ast.Tuple) and len(node.elts) in (2, 3):
            # Rows of facts and tiles begin with their names.
            first = node.elts[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value if first.value[:1].isupper() else ""


def options() -> Iterator[str]:
    """Labels and help of the engine's options, as the controls show them."""
    waiting = [describe(TrainConfig)]
    while waiting:
        node = waiting.pop()
        if "item" in node:
            waiting.append(node["item"])
        for child in node.get("children", ()):
            unit = child["unit"]
            yield child["label"]
            yield f"{child['help']} ({unit})" if unit else child["help"]
            waiting.append(child)


def missing(words: Iterator[str], chinese: dict[str, str]) -> list[str]:
    found = {each.strip() for each in words}
    return sorted(each for each in found if each not in chinese and not SAME.fullmatch(each))


def test_the_words_of_the_tab_are_translated(chinese: dict[str, str]) -> None:
    found = [word for path in sorted(TAB.glob("*.py")) for word in said(path)]
    assert len(set(found)) > 120  # the search itself finds something
    found += [words[:1].upper() + words[1:] for words in STAGES.values()]
    assert missing(iter(found), chinese) == []


def test_the_options_of_the_engine_are_translated(chinese: dict[str, str]) -> None:
    assert missing(options(), chinese) == []


def test_the_tools_are_translated(chinese: dict[str, str]) -> None:
    from extension.service.requests import TOOLS
    from extension.service.requests import options as options_of
    from extension.tab.tasks import HELP

    words = [
        word
        for tool in TOOLS
        for option in options_of(tool)
        for word in (
            option.label,
            HELP.get(option.help) or option.help[:1].upper() + option.help[1:],
        )
    ]
    assert missing(iter(words), chinese) == []


def test_the_presets_are_translated(chinese: dict[str, str]) -> None:
    assert missing((entry.about for entry in catalogue.entries()), chinese) == []


def test_nothing_is_left_in_english(chinese: dict[str, str]) -> None:
    names = {"VAE", "Alpha", "Dropout", "EMA", "TF32", "TensorBoard", "Epsilon", "Weights & Biases"}
    same = {word for word, translated in chinese.items() if word == translated}
    assert same <= names | {"Beta 1", "Beta 2", "Min-SNR gamma", "PyTorch"}


def test_no_text_has_signs_that_the_host_skips(chinese: dict[str, str]) -> None:
    """The WebUI leaves texts with emoji alone, so they would never be translated."""
    emoji = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u25b6\u25c0\u2b00-\u2bff]")
    assert [word for word in chinese if emoji.search(word)] == []
