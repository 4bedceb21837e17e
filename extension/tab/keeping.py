"""What is in the form, kept by the page itself: loading the page again loses none of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .common import hidden_button, hidden_text
from .compat import Component, Update, on, update


class Keeping:
    """The values of controls, as a text that the page's script keeps while its browser tab is open.

    Args:
        controls: by names that mean the same in another version of the page: what is not known any
            more is left out, and what is new stays as it is.
        apart: the same for controls that the page fills itself.
    """

    def __init__(self, controls: dict[str, Component], apart: dict[str, Component]) -> None:
        self.controls = controls
        self.text: Component = hidden_text("dreambooth_kept")
        self._all = apart | controls
        self.after(hidden_button("dreambooth_keep").click)

    def after(self, event: Any) -> None:
        """Keeps what is in the form after an event."""
        on(event, self._written, list(self._all.values()), [self.text], quiet=True)

    def _written(self, *given: Any) -> str:
        return json.dumps(dict(zip(self._all, given, strict=True)))

    def read(self, text: str) -> dict[str, Any]:
        """The values by name; none where nothing was kept."""
        try:
            values = json.loads(text or "{}")
        except ValueError:
            return {}
        return values if isinstance(values, dict) else {}

    def updates(self, values: Mapping[str, Any]) -> list[Update]:
        """What a handler returns for the controls."""
        return [
            update(value=values[name]) if name in values else update() for name in self.controls
        ]
