"""The tab that people see. All work is asked of the service; gradio is imported only by drawing."""

from __future__ import annotations

from typing import Any


def tab(studio: Any) -> list[tuple[Any, str, str]]:
    """The tab as the host expects it: (blocks, title, element id)."""
    from .page import tab as draw

    return draw(studio)
