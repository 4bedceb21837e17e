"""The WebUI's tab. The only package that imports the host's `modules` or gradio."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger("dreambooth")

NOTICE = """\
### DreamBooth

The training engine works from the command line today; this tab is coming.

In `{root}`: `python install.py` sets the engine up in an environment of its own (now: {state}),
`python install.py demo` shows it at work, and README.md says how to train on your own pictures.
"""


def register(root: Path) -> None:
    """Asks the host for a tab. Whatever host this is, it goes on without us."""
    try:
        from modules import script_callbacks  # type: ignore[import-not-found]
    except ImportError as error:
        log.warning("dreambooth: this is no WebUI that is known here (%s); no tab is shown", error)
        return
    script_callbacks.on_ui_tabs(lambda: tab(root))


def tab(root: Path) -> list[tuple[Any, str, str]]:
    """The tab as the host expects it: (blocks, title, element id)."""
    import gradio  # type: ignore[import-not-found]

    from dreambooth_core.environment import locate, status

    now = status(locate(root))
    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.Markdown(NOTICE.format(root=root, state="ready" if now.ready else now.reason))
    return [(blocks, "DreamBooth", "dreambooth_tab")]
