"""The terminal: styled where this program says so, and other people's words as they are.

rich takes ``[/red]`` in a prompt for markup and ``:dog:`` for an emoji; here nothing is taken for
anything, and control codes are spelled out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreambooth_core.errors import escaped


def terminal(*, stderr: bool = False) -> Console:
    """A console for which every text is just that."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def words(*parts: str | tuple[str, str]) -> Text:
    """A line of texts, some with a style: ``words(("failed", "red"), ": ", message)``."""
    return Text.assemble(
        *(escaped(p) if isinstance(p, str) else (escaped(p[0]), p[1]) for p in parts)
    )


def facts(rows: Iterable[tuple[str, Any]]) -> Table:
    """Names and values in two columns."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows:
        table.add_row(escaped(name), value if isinstance(value, Text) else escaped(str(value)))
    return table
