"""Who may call the routes: the host's own users, by the host's own passwords.

A host protects neither by ``--api-auth`` nor by ``--gradio-auth`` what extensions add.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request

from ..host.base import Exposure


def guard(app: Any, exposure: Callable[[], Exposure]) -> Callable[[Request], None]:
    """A dependency that lets a request through or answers 401.

    Without ``--api-auth`` and ``--gradio-auth`` everybody is let through, as the host does. With
    either, a name and password of it (HTTP Basic) are needed; with ``--gradio-auth`` the cookie
    of the page that somebody logged in to does as well.

    Args:
        app: the host's app, which knows who is logged in.
        exposure: the host's users; asked at each request.
    """

    def check(request: Request) -> None:
        users = exposure()
        if not users.api_users and not users.page_users:
            return
        given = _basic(request.headers.get("authorization", ""))
        if given and any(_is_user(given, known) for known in (users.api_users, users.page_users)):
            return
        if users.page_users and _logged_in(app, request.cookies):
            return
        raise HTTPException(
            status_code=401,
            detail="A user and password of --api-auth or --gradio-auth are needed.",
            headers={"WWW-Authenticate": "Basic"},
        )

    return check


def _basic(header: str) -> tuple[str, str] | None:
    """User and password out of an ``Authorization`` header."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(text.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, password = decoded.partition(":")
    return (user, password) if colon else None


def _is_user(given: tuple[str, str], known: Mapping[str, str]) -> bool:
    user, password = given
    right = known.get(user)
    # Compared either way, in constant time: neither names nor passwords can be found by the clock.
    same = secrets.compare_digest(password.encode(), (right or "").encode())
    return right is not None and same


def _logged_in(app: Any, cookies: Mapping[str, str]) -> bool:
    """Whether one of gradio's cookies (``access-token``, in later versions with an ending) names
    somebody whom gradio knows."""
    tokens = getattr(app, "tokens", None) or {}
    return any(
        name.startswith("access-token") and value in tokens for name, value in cookies.items()
    )
