"""What the areas of the tab share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError

from .compat import Component, make, update
from .html import Html, div, span, tag
from .values import field_of, in_words


def card(*, elem_id: str | None = None, visible: bool = True) -> Any:
    """A surface that holds one area."""
    return gr.Column(elem_classes=["db-card"], elem_id=elem_id, visible=visible)


def heading(number: str, title: str, hint: str = "") -> Component:
    """The title of an area; numbered where areas are steps."""
    badge = span("db-badge", number) if number else ""
    words = [tag("h3", badge, span("", title))]
    if hint:
        words.append(div("db-hint", hint))
    return gr.HTML(div("db-heading", *words))


def html(value: str = "", *, elem_id: str | None = None, visible: bool = True) -> Component:
    """A place for markup."""
    return gr.HTML(value, elem_id=elem_id, visible=visible)


def button(
    words: str, *, elem_id: str | None = None, kind: str = "secondary", **more: Any
) -> Component:
    """A button; ``primary`` for the one thing to do, ``stop`` for what cannot be undone."""
    return make("Button", value=words, elem_id=elem_id, variant=kind, **more)


def hidden_button(elem_id: str) -> Component:
    """One that only the page's script presses. (Invisible ones are not in the page at all.)"""
    return make("Button", value=elem_id, elem_id=elem_id, elem_classes=["db-hidden"])


def hidden_text(elem_id: str) -> Component:
    """A text that the page's script reads or writes."""
    return make("Textbox", value="", elem_id=elem_id, elem_classes=["db-hidden"], show_label=False)


def failure(error: DreamBoothError, labels: Mapping[str, str] | None = None) -> Html:
    """An error's one line, in the words of the page; if it names a field, that is marked too."""
    key = field_of(error.line, labels or ())
    words = in_words(error.line, labels or {})
    return div("db-note db-note-wrong", span("", words), data_field=key)


def told(act: Callable[..., Any], *given: Any) -> Html:
    """Runs something that only has to happen; says what went wrong, or nothing."""
    try:
        act(*given)
    except DreamBoothError as error:
        return failure(error)
    return Html("")


class Fresh:
    """Sends to a page only what it has not got yet: what does not change does not flicker."""

    def __init__(self, seen: dict[str, Any] | None) -> None:
        self.seen: dict[str, Any] = dict(seen or {})

    def value(self, name: str, value: Any) -> dict[str, Any]:
        """The update that shows a value, or none if the page shows it already."""
        if self.seen.get(name) == value and name in self.seen:
            return update()
        self.seen[name] = value
        return update(value=value)

    def visible(self, name: str, shown: bool) -> dict[str, Any]:
        """The same for whether something is there."""
        if self.seen.get(name) is shown:
            return update()
        self.seen[name] = shown
        return update(visible=shown)
