"""Writes docs/configuration.md, every option there is: ``python -m tools.reference``.

The dataclasses say all of it; run this again when one of them changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import describe
from dreambooth_core.disk import write_text
from dreambooth_core.options import TrainConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """\
# Configuration

Every option of `dreambooth train`, `check` and `estimate`, of the WebUI's tab and of the nodes:
three views of one set of dataclasses. In a YAML file the sections are nested; on the command
line their names are joined by dots: `dreambooth train my.yaml method.rank=16`.
"""
FOOT = "<!-- Written by python -m tools.reference -->\n"


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section(describe(TrainConfig), "", 2), FOOT])


def _section(section: dict[str, Any], key: str, depth: int) -> Iterator[str]:
    children = section["children"]
    values = [child for child in children if not _is_section(child)]
    if key:
        yield f"{'#' * depth} {key}\n"
        yield f"{section['help']}\n"
    if values:
        yield "| option | default | values | what it does |"
        yield "| --- | --- | --- | --- |"
        yield from map(_row, values)
        yield ""
    for child in children:
        if _is_section(child):
            inner = child.get("item", child)
            yield from _section({**child, **inner}, child["key"], min(depth + bool(key), 4))


def _is_section(member: dict[str, Any]) -> bool:
    return "children" in member.get("item", member)


def _row(member: dict[str, Any]) -> str:
    label, help_text = member["label"], member["help"]
    if member["aliases"]:
        help_text += f" Before: {', '.join(f'`{name}`' for name in member['aliases'])}."
    cells = (f"`{member['name']}`", _default(member), _values(member), f"**{label}.** {help_text}")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(member: dict[str, Any]) -> str:
    if member["required"]:
        return "must be given"
    value = member["default"]
    if value is None or value in ("", [], {}):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(member: dict[str, Any]) -> str:
    if member["choices"]:
        return ", ".join(f"`{choice}`" for choice in member["choices"])
    low, high, unit = member["minimum"], member["maximum"], member["unit"]
    kind = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    words = [kind.get(member["type"], member["type"])]
    if low is not None and high is not None:
        words.append(f"{low} to {high}")
    elif low is not None:
        words.append(f"from {low}")
    elif high is not None:
        words.append(f"up to {high}")
    return " ".join([*words, unit]).strip()


def main() -> int:
    """Writes the page."""
    write_text(PAGE, page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
