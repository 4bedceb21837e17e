"""The tables of tools are made by running the tools."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.families.registry import FAMILIES
from tools.tools_table import BEGIN, END, KINDS, OF_ADAPTERS, PAGE, adapters, cell, lines


def test_what_is_tried_is_what_the_page_says(tmp_path: Path) -> None:
    found = adapters([FAMILIES["z_image"]], tmp_path)
    row = lines("adapter", OF_ADAPTERS, KINDS, found)[3]
    assert row == "| `merge` | yes | with `--base` | yes | yes | with `--base` |"
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert row in written


def test_who_answers_otherwise_is_named() -> None:
    assert cell({"a": "yes", "b": "no", "c": "yes", "d": "no"}) == "yes; no: b, d"
    assert cell({"a": "no"}) == "no"
