"""What callers show: the API's token, new at each start of the host, in a file that only its user
reads; and the word of our own page."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("dreambooth")

FILE = ".api-token"
"""In our folder. gradio 3 shows no file whose name begins with a dot."""

VARIABLE = "DREAMBOOTH_API_TOKEN"
"""A token of the user's own in place of a new one, for several hosts or for containers."""

SHORTEST = 16

WORD = secrets.token_urlsafe(24)
"""Of our page, for the tab's own functions: the page asks for it, and no other page is told. New
at each start of the host; stays over Reload UI."""


def is_word(given: object) -> bool:
    """Compared in constant time."""
    return secrets.compare_digest(str(given).encode("utf-8", "replace"), WORD.encode())


@dataclass(frozen=True)
class Token:
    """The token, and the file that it is in."""

    value: str
    file: Path

    def is_it(self, given: str) -> bool:
        """Compared in constant time."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), self.value.encode())


def make(folder: Path) -> Token:
    """A token, written into ``folder`` with rights for its owner alone.

    Where it cannot be written a line in the log says so: then only callers that were given
    ``DREAMBOOTH_API_TOKEN`` can know it.
    """
    own = os.environ.get(VARIABLE, "").strip()
    if own and len(own) < SHORTEST:
        log.warning("%s has less than %d characters and is not used", VARIABLE, SHORTEST)
        own = ""
    token = Token(own or secrets.token_urlsafe(32), folder / FILE)
    try:
        _write(token)
    except OSError as error:
        reason = error.strerror or error
        log.warning("the API's token could not be written to %s: %s", token.file, reason)
    return token


def _write(token: Token) -> None:
    """Never readable by others, also not for a moment."""
    token.file.parent.mkdir(parents=True, exist_ok=True)
    temporary = token.file.with_name(f"{FILE}.{secrets.token_hex(6)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii", errors="replace") as file:
            file.write(token.value + "\n")
        temporary.replace(token.file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
