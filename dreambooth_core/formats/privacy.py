"""What a file that is passed on must not tell: folders of this machine, and with them its user.

Other trainers write absolute paths into metadata (``ss_sd_model_name``, ``ss_dataset_dirs``,
``base_model_name_or_path``, training comments), and a home folder's name is its owner's. Everything
that is written goes through :func:`cleaned`: of a path only the last name is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = r"[^\s/\\\"'<>|:*?,;()\[\]{}]"
_START = r"(?<![\w/\\.:~%$}-])"
_PATHS = re.compile(
    "|".join(
        (
            rf"(?:file:)//+{_NAME}+(?:[\\/]+{_NAME}+)*[\\/]*",
            rf"{_START}[A-Za-z]:[\\/]+(?:{_NAME}+[\\/]+)*{_NAME}*",  # C:\Users\…
            rf"{_START}\\\\+{_NAME}+(?:[\\/]+{_NAME}+)+[\\/]*",  # \\server\share
            rf"{_START}~{_NAME}*(?:/{_NAME}+)+/?",
            rf"{_START}(?:/{_NAME}+){{2,}}/?",
        )
    )
)
_WHOLE = re.compile(r"(?:file://|~[^\s/]*/|/(?!/)[^/\n]+/|[A-Za-z]:[\\/]|\\\\)[^\n]*")
"""A text that is nothing but a path, with spaces in it perhaps."""
_VARIABLES = re.compile(
    r"\$\{[A-Za-z_]\w*\}|\$[A-Z_][A-Z0-9_]{2,}|%[A-Za-z_]\w{2,}%|\bhf_[A-Za-z0-9]{16,}"
)
"""References to environment variables, and tokens that live in one."""
HOMES = ("home", "users")
_ENDS = re.compile(r"[\\/]+")


def cleaned(value: Any) -> Any:
    """The same without paths, environment variables and tokens, in keys too.

    Takes what JSON knows; a text that is JSON itself, as metadata often is, stays JSON.
    """
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    if not any(True for _ in telltales(text)):
        return text
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(cleaned(json.loads(text)), ensure_ascii=False)
        except ValueError:
            pass
    text = _VARIABLES.sub("", text)
    if _WHOLE.fullmatch(text.strip()):
        return _last(text.strip())
    return _PATHS.sub(lambda found: _last(found[0]), text)


def telltales(value: Any) -> Iterator[str]:
    """Paths, references to environment variables and tokens in a value, as they stand there."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from telltales(key)
            yield from telltales(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from telltales(item)
    elif isinstance(value, str):
        if _WHOLE.fullmatch(value.strip()):
            yield value.strip()
        else:
            yield from _PATHS.findall(value)
        yield from _VARIABLES.findall(value)


def warning(value: Any, what: str) -> str | None:
    """One line for a person about what ``value`` gives away; None if that is nothing."""
    found = list(dict.fromkeys(telltales(value)))
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{what} tells of the machine that made it: {found[0][:120]}{more}. "
        "`dreambooth convert` writes a copy without it"
    )


def _last(path: str) -> str:
    """The last name of a path; nothing of a home folder, which is named after its owner."""
    parts = [part for part in _ENDS.split(path) if part] or [""]
    home = len(parts) > 1 and parts[-2].lower() in HOMES
    return "" if home else parts[-1]
