"""Writes the last table of docs/methods.md, every option with the test that shows it.

``python -m tools.tested_options``. The options come from the dataclasses, the tests from
``tests/helpers/shown.py``.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import describe
from dreambooth_core.disk import write_text
from dreambooth_core.options import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "methods.md"
SHOWN = ROOT / "tests" / "helpers" / "shown.py"
BEGIN = "<!-- Begin of what python -m tools.tested_options writes -->"
END = "<!-- End of what python -m tools.tested_options writes -->"


def leaves(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every option of a described section that is no section itself."""
    for child in section["children"]:
        inner = child.get("item", child)
        if "children" in inner:
            yield from leaves(inner)
        else:
            yield child


def table() -> str:
    """The table, with the lines around it by which it is found."""
    shown = runpy.run_path(str(SHOWN))["SHOWN"]
    lines = [BEGIN, "", "| option | what it is | test |", "| --- | --- | --- |"]
    for leaf in leaves(describe(TrainConfig)):
        file, name = shown[leaf["key"]]
        lines.append(f"| `{leaf['key']}` | {leaf['label']} | `tests/{file}::{name}` |")
    return "\n".join([*lines, "", END])


def page(text: str) -> str:
    """The page with the table as it is now in place of the one in it."""
    before, _, rest = text.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


def main() -> int:
    """Writes the page."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
