"""The users of the page."""

from __future__ import annotations

from modules import shared


def get_gradio_auth_creds() -> list[tuple[str, ...]]:
    return [
        tuple(pair.split(":")) for pair in (shared.cmd_opts.gradio_auth or "").split(",") if pair
    ]
