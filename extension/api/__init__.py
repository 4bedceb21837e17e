"""Routes under ``/dreambooth/v1/``: what the tab does, for scripts."""

from __future__ import annotations

from .routes import add_routes

__all__ = ["add_routes"]
