"""The WebUI's extension. Nothing else imports the host's ``modules``, gradio or fastapi.

``host`` knows the WebUIs, ``service`` does the work and knows neither host nor page, ``tab`` draws
it and ``api`` offers it to scripts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import Studio

log = logging.getLogger("dreambooth")

_studios: dict[Path, Studio] = {}
"""Kept over Reload UI, which runs our script again but keeps imported packages: whoever watches
the runs and owes the host its model must not be lost."""


def register(root: Path) -> None:
    """Asks the host for a tab, routes and settings. On a host that we do not know, the tab and a
    line in its log say what it lacks, and it goes on without us."""
    from . import host as hosts

    studio = _studios.get(root)
    try:
        host: Any = studio.host if studio is not None else hosts.find()
    except hosts.UnknownHost as error:
        log.warning("dreambooth: %s", error)
        hosts.show(str(error))
        return
    host.on_settings()
    host.on_tab(lambda: _tab(root, host))
    host.on_app(lambda app: _app(root, host, app))


def _studio(root: Path, host: Any) -> Studio:
    """The one of this process. Made late: the host's settings are not read when scripts load."""
    from .service import Studio

    if root not in _studios:
        _studios[root] = Studio(root, host)
    return _studios[root]


def _tab(root: Path, host: Any) -> list[tuple[Any, str, str]]:
    from .tab import tab

    return tab(_studio(root, host))


def _app(root: Path, host: Any, app: Any) -> None:
    """When the host stands: the routes, and what goes on already is taken up."""
    from .api import add_routes

    studio = _studio(root, host)
    add_routes(app, studio)
    studio.runs.attach()
