"""The callbacks that an extension may register; Reload UI forgets them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

registered: dict[str, list[Callable[..., Any]]] = {}


def clear_callbacks() -> None:
    registered.clear()


def call(name: str, *given: Any) -> list[Any]:
    """Calls all of one kind, and returns what they return."""
    return [callback(*given) for callback in registered.get(name, ())]


def on_ui_tabs(callback: Callable[[], list[tuple[Any, str, str]]]) -> None:
    registered.setdefault("ui_tabs", []).append(callback)


def on_ui_settings(callback: Callable[[], None]) -> None:
    registered.setdefault("ui_settings", []).append(callback)


def on_app_started(callback: Callable[[Any, Any], None]) -> None:
    registered.setdefault("app_started", []).append(callback)


def on_before_reload(callback: Callable[[], None]) -> None:
    registered.setdefault("before_reload", []).append(callback)


def on_script_unloaded(callback: Callable[[], None]) -> None:
    registered.setdefault("script_unloaded", []).append(callback)


def on_model_loaded(callback: Callable[[Any], None]) -> None:
    registered.setdefault("model_loaded", []).append(callback)
