"""gradio 3.41 (AUTOMATIC1111's WebUI) and 4.40 (Forge) behind one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

GRADIO4 = int(gr.__version__.split(".")[0]) >= 4

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
        js: JavaScript that runs in the page before the handler, or instead of it.
        quiet: for what happens often: no queue, and nothing fades while it runs.
    """
    options: dict[str, Any] = {"api_name": False}
    if js is not None:
        options["js" if GRADIO4 else "_js"] = js
    if quiet:
        options.update(queue=False, show_progress="hidden")
    return event(handler, inputs=list(inputs), outputs=list(outputs), **options)


def forget(component: Component) -> Component:
    """Keeps the host from writing a component's value into ui-config.json.

    It would read it again before ours: an old setting would win over a new default, silently.
    """
    component.do_not_save_to_config = True
    return component


def make(kind: str, /, **arguments: Any) -> Component:
    """A component by name, which the host does not remember."""
    return forget(getattr(gr, kind)(**arguments))
