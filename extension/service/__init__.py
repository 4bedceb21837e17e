"""All that the tab and the API can do, without gradio and without the host's modules."""

from __future__ import annotations

from .studio import Studio

__all__ = ["Studio"]
