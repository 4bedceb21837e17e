"""Names of runs that every file system takes."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 80
"""Characters of a run's name; Windows allows 260 for a whole path."""

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')
_RESERVED = re.compile(
    r"^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE
)
"""Device names, which Windows refuses with any extension too."""


def sanitise(name: str) -> str:
    """The nearest name that can be a folder on Windows, macOS and Linux; never empty.

    >>> sanitise("my dog: <best>/2. ")
    'my dog_ _best_2'
    """
    text = unicodedata.normalize("NFC", name)
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates
    text = _FORBIDDEN.sub("_", text)
    text = re.sub(r"\s+", " ", text)[:LONGEST]
    while len(text.encode("utf-8")) > 2 * LONGEST:
        text = text[:-1]
    text = text.strip(" .")
    if _RESERVED.match(text):
        text = "_" + text
    return text or "run"
