"""gradio 3.41 (AUTOMATIC1111's WebUI) and 4.40 (Forge) behind one face."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

GRADIO4 = int(gr.__version__.split(".")[0]) >= 4

_WORD = secrets.token_urlsafe(24)
"""New at each start of the host; stays over Reload UI."""

_word: list[Any] = []
"""The component of the page that is being drawn."""

Component = Any
"""gradio has no type that both versions share."""

Update = dict[str, Any]


def update(**changes: Any) -> Update:
    """What a handler returns to change a component; nothing changes what is not named."""
    changed: Update = gr.update(**changes)
    return changed


def on(
    event: Any,
    handler: Callable[..., Any] | None,
    inputs: Sequence[Component] = (),
    outputs: Sequence[Component] = (),
    *,
    js: str | None = None,
    quiet: bool = False,
) -> Any:
    """Calls ``handler`` on ``event``: ``on(button.click, start, [name], [report])``.

    Args:
        js: JavaScript that runs in the page before the handler, or instead of it. Before one, it
            gets the page's word first and returns it first.
        quiet: for what happens often: no queue, and nothing fades while it runs.
    """
    options: dict[str, Any] = {"api_name": False}
    inputs = list(inputs)
    if handler is not None:
        assert _word, "open_page comes first"
        handler, inputs = _ours(handler), [_word[0], *inputs]
    if js is not None:
        options["js" if GRADIO4 else "_js"] = js
    if quiet:
        options.update(queue=False, show_progress="hidden")
    return event(handler, inputs=inputs, outputs=list(outputs), **options)


def open_page() -> None:
    """Puts the page's word into it, hidden, before anything that is called from it."""
    _word[:] = [make("Textbox", value=_WORD, visible=False, elem_id="dreambooth_word")]


def _ours(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler for our own page alone: another web page can make a browser call it as well, for
    gradio asks nobody where a request comes from, but cannot read the word that ours carries."""

    def called(word: Any, *given: Any) -> Any:
        if not secrets.compare_digest(str(word).encode("utf-8", "replace"), _WORD.encode()):
            raise gr.Error("DreamBooth: this page is of an earlier start. Load it again.")
        return handler(*given)

    return called


def forget(component: Component) -> Component:
    """Keeps the host from writing a component's value into ui-config.json.

    It would read it again before ours: an old setting would win over a new default, silently.
    """
    component.do_not_save_to_config = True
    return component


def make(kind: str, /, **arguments: Any) -> Component:
    """A component by name, which the host does not remember."""
    return forget(getattr(gr, kind)(**arguments))
