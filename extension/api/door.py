"""Who may call the routes. Everything is decided before a byte of the body is read.

In this order: the Host (DNS rebinding), other web pages, the size that is announced, the token,
the host's own passwords, the type of the body. Then the body is read, with a limit, as strict
JSON.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json

from ..host.base import Exposure
from ..service.origin import foreign, stranger
from ..service.token import Token
from .answers import Refused

HEADER = "x-dreambooth-token"

LARGEST = 1_000_000
"""Bytes of a body: a configuration has thousands."""

LONGEST_QUERY = 8000
LONGEST_PATH = 2000


class Door:
    """Lets a request through, or raises ``Refused``.

    Args:
        app: the host's app, which knows who is logged in.
        exposure: the host's users and names; asked at each request.
        token: what every caller shows.
    """

    def __init__(self, app: Any, exposure: Callable[[], Exposure], token: Token) -> None:
        self._app = app
        self._exposure = exposure
        self._token = token

    async def admit(self, request: Request) -> None:
        """Decides, and reads the body; fastapi finds it read.

        Raises:
            Refused: for whatever reason, in its status.
        """
        exposure = self._exposure()
        _refuse(stranger(request.headers, exposure))
        _check_sizes(request)
        self._check_token(request)
        self._check_login(request, exposure)
        if not _has_body(request):
            return
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "the body is not application/json", do="Set the Content-Type.")
        body = await _read(request)
        try:
            found = parse_json(body, largest=LARGEST)
        except UserError as error:
            raise Refused(400, error.what, where="the body", do=error.do) from None
        if not isinstance(found, dict):  # pydantic 1 takes an empty list for an object
            raise Refused(422, "the body is not an object")
        request._json, request._body = found, body

    def _check_token(self, request: Request) -> None:
        """``X-DreamBooth-Token``, or ``Authorization: Bearer`` (or ``token``, as Jupyter)."""
        given = request.headers.get(HEADER, "")
        if not given:
            scheme, _, text = request.headers.get("authorization", "").partition(" ")
            given = text.strip() if scheme.lower() in ("bearer", "token") else ""
        if not self._token.is_it(given):
            raise Refused(
                401,
                "the token is wrong" if given else "the token is missing",
                do=f"Send X-DreamBooth-Token: what {self._token.file.name} holds, in the folder "
                "of runs.",
            )

    def _check_login(self, request: Request, users: Exposure) -> None:
        """Where the host has passwords (``--api-auth``, ``--gradio-auth``) one of them is needed
        besides, by HTTP Basic; with ``--gradio-auth`` the cookie of the page that somebody logged
        in to does as well. A host protects by neither what extensions add."""
        if not users.api_users and not users.page_users:
            return
        given = _basic(request.headers.get("authorization", ""))
        if given and any(_is_user(given, known) for known in (users.api_users, users.page_users)):
            return
        if users.page_users and _logged_in(self._app, request.cookies):
            return
        raise Refused(
            401,
            "a user and password of --api-auth or --gradio-auth are needed",
            headers={"WWW-Authenticate": "Basic"},
        )


class PageDoor(Door):
    """Lets our own page through, which has no token yet."""

    async def admit(self, request: Request) -> None:
        """By its headers, and the login of the page itself.

        A host for this machine alone is reached by a foreign name through DNS rebinding only. One
        for others is open to them by any name.
        """
        exposure = self._exposure()
        check = foreign if exposure.remote else stranger
        _refuse(check(request.headers, exposure))
        _check_sizes(request)
        self._check_login(request, replace(exposure, api_users={}))


def _refuse(reason: str) -> None:
    if reason:
        do = "Behind a proxy: start the host with --dreambooth-host NAME."
        raise Refused(403, reason, do=do)


def _check_sizes(request: Request) -> None:
    if len(request.scope.get("query_string", b"")) > LONGEST_QUERY:
        raise Refused(414, "the query is too long")
    if len(request.scope.get("path", "")) > LONGEST_PATH:
        raise Refused(414, "the address is too long")
    told = request.headers.get("content-length", "0")
    if not (told.isascii() and told.isdigit() and len(told) < 20):
        raise Refused(400, "Content-Length is not a number")
    if int(told) > LARGEST:
        raise _too_large()


def _has_body(request: Request) -> bool:
    """Whether a body comes, or must come."""
    announced = request.headers.get("content-length", "0") != "0"
    streamed = "transfer-encoding" in request.headers
    return request.method in ("POST", "PUT", "PATCH") or announced or streamed


async def _read(request: Request) -> bytes:
    """The body; one that lies about its size ends at the limit too."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise _too_large()
        parts.append(part)
    return b"".join(parts)


def _too_large() -> Refused:
    return Refused(413, f"the body has more than {LARGEST:,} bytes", do="Send less.")


def _basic(header: str) -> tuple[str, str] | None:
    """User and password out of an ``Authorization`` header."""
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(text.strip(), validate=True).decode("utf-8")
    except (ValueError, binascii.Error, UnicodeDecodeError):
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
