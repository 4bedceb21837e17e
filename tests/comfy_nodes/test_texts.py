"""Help pages, locales and example workflows fit the nodes as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.comfy_workflows import problems

from comfy_nodes.concepts import EXAMPLE, STAR
from tools.comfyui import texts, workflows

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_is_there_and_up_to_date(language: str) -> None:
    """``python -m tools.comfyui`` writes them."""
    for name, text in texts.files().items():
        chinese = "/zh/" in name or name.endswith("zh.md")
        if chinese == (language == "zh"):
            assert (ROOT / name).read_text(encoding="utf-8") == text, name


def test_no_page_is_left_of_a_node_that_is_gone() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "web" / "docs").rglob("*.md")}
    assert pages == {name for name in texts.files() if name.startswith("web/docs/")}


def test_chinese_is_chinese() -> None:
    for node in texts.definitions("zh").values():
        assert any("\u4e00" <= letter <= "\u9fff" for letter in node["description"]), node


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == set(workflows.EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_the_nodes(path: Path) -> None:
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert problems(workflow) == []
    assert workflow == json.loads(json.dumps(workflows.EXAMPLES[path.stem]().page()))
    assert path.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_node_lies_on_another(path: Path) -> None:
    """Each lies in a group that says what it is for."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    title = 30
    boxes = [
        (x, y - title, x + wide, y + high)
        for node in workflow["nodes"]
        for (x, y), (wide, high) in [(node["pos"], node["size"])]
    ]
    for number, (left, top, right, low) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            apart = right <= other[0] or other[2] <= left or low <= other[1] or other[3] <= top
            assert apart, (workflow["nodes"][number]["type"], other)
        assert any(
            x <= left and y <= top and right <= x + wide and low <= y + high
            for x, y, wide, high in (group["bounding"] for group in workflow["groups"])
        )


def test_the_examples_need_no_images_of_ones_own() -> None:
    used = {
        node["widgets_values"][0]
        for path in EXAMPLES
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]
        if node["type"] == "DreamBoothImages"
    }
    assert used == {EXAMPLE}
    assert len(list(STAR.glob("*.png"))) == 5


def test_what_does_not_fit_is_found() -> None:
    workflow = workflows.compare_steps().page()
    ours = next(n for n in workflow["nodes"] if n["type"] == "DreamBoothCompareSteps")
    ours["widgets_values"][0] = 5
    ours["inputs"][0]["link"] = None
    assert len(problems(workflow)) == 3
