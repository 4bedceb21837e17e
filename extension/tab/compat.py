"""gradio 3.41 (AUTOMATIC1111's WebUI) and 4.40 (Forge) behind one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..service.token import is_word

GRADIO4 = int(gr.__version__.split(".")[0]) >= 4

_word: list[Any] = []
"""What carries the word, of the page that is being drawn."""

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
        js: JavaScript that runs in the page before the handler, on its inputs, or instead of it.
        quiet: for what happens often: no queue, and nothing fades while it runs.
    """
    options: dict[str, Any] = {"api_name": False}
    inputs = list(inputs)
    if handler is not None:
        assert _word, "open_page comes first"
        before = js or "(...given) => given"
        # gradio gives what is in the outputs too, behind the inputs.
        js = (
            "async (_, ...given) => [await dreambooth.word(), "
            f"...({before})(...given.slice(0, {len(inputs)}))]"
        )
        handler, inputs = _ours(handler), [_word[0], *inputs]
    if js is not None:
        options["js" if GRADIO4 else "_js"] = js
    if quiet:
        options.update(queue=False, show_progress="hidden")
    return event(handler, inputs=inputs, outputs=list(outputs), **options)


def open_page() -> None:
    """Puts what carries the word into the page, hidden, before anything that is called from it."""
    _word[:] = [make("Textbox", value="", visible=False, elem_id="dreambooth_word")]


def _ours(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler for our own page alone: another web page can make a browser call it as well, for
    gradio asks nobody where a request comes from (and gradio 3 believes a request that says so
    itself), but is not told the word that ours asks for."""

    def called(word: Any, *given: Any) -> Any:
        if not is_word(word):
            raise gr.Error(
                "DreamBooth: load this page again. Behind a proxy: start the host with "
                "--dreambooth-host NAME."
            )
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
