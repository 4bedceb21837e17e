"""The engine's side: its environment, its warm helper, and whether it is there at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.environment import locate, status
from dreambooth_core.errors import DreamBoothError, UserError
from dreambooth_core.hosting.warm import Helper, shared

from . import host
from .words import in_words

ROOT = Path(__file__).resolve().parent.parent
"""The pack's folder."""


def require() -> None:
    """Raises ``UserError`` with the command to run where the engine has no environment."""
    layout = locate(ROOT)
    try:
        layout.command()
    except FileNotFoundError:
        raise UserError(
            "the training engine is not installed yet",
            do=f"Run 'python install.py' in {ROOT}, then queue again.",
        ) from None
    if layout.marker.is_file():
        now = status(layout)
        if not now.ready:
            raise UserError(
                f"the training engine cannot be used: {now.reason}",
                do=f"Run 'python install.py' in {ROOT}, then queue again.",
            )


def task(
    name: str,
    options: Mapping[str, Any],
    progress: host.Progress | None = None,
    *,
    gpu: bool = False,
) -> dict[str, Any]:
    """A command of the engine in the warm helper; the queue's cancel button ends it.

    Args:
        name: the command.
        options: fields of its ``Options``.
        progress: shows what it says meanwhile.
        gpu: whether it works on the GPU: then in a process of its own, which leaves afterwards.
    """
    require()

    def tell(report: dict[str, Any]) -> None:
        if progress is not None:
            progress.say(str(report.get("message", "")))

    helper = Helper(ROOT, gpu=True) if gpu else shared(ROOT)
    try:
        return helper.task(name, options, progress=tell, cancelled=host.interrupted)
    except DreamBoothError as error:
        raise in_words(error) from error
    finally:
        if gpu:
            helper.close()
