"""The engine's errors in the graph's words: nodes and widgets in place of keys and flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from dreambooth_core.errors import DreamBoothError

Places = Mapping[str, str]
"""Node and widget by the engine's key, and by the last part of it."""

_KEY = re.compile(r"\b[a-z_]+(?:\.[a-z_0-9]+)+\b")
_FLAG = re.compile(r"--([A-Za-z_]+)")
_AS_KEY = "Set it in the file or as key=value."
COMMAND_LINE = "command line"
"""Where the engine thinks that the overrides' lines were written."""

SENT = "settings.json"
"""The file in which a graph's settings go to the engine: nobody has written it by hand."""


_places: Callable[[], Places] = dict


def look_up(places: Callable[[], Places]) -> None:
    """Says where the nodes' names are found: the nodes themselves stand above this module."""
    global _places
    _places = places


def in_words(error: DreamBoothError) -> DreamBoothError:
    """The same error, told to somebody who looks at a graph."""
    where, what, do = error.where, error.what, error.do
    named = _KEY.search(what)
    if named and named.group() in _places() and what.startswith(f"{named.group()}: "):
        where, what = _places()[named.group()], what.removeprefix(f"{named.group()}: ")
    elif where and where.startswith(COMMAND_LINE):
        where = _places()["overrides"]
    elif where and SENT in where:
        where = None
    said = do and do.replace(_AS_KEY, f"Set it in {_places()['overrides']}, as key=value.")
    return type(error)(_told(what), where=where, do=said and _told(said))


def _told(text: str) -> str:
    text = _FLAG.sub(lambda flag: _places().get(flag[1], flag[1].replace("_", " ")), text)
    return _KEY.sub(lambda key: _places().get(key.group(), key.group()), text)
