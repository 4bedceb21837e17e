"""Whether a request comes from our own page, or from a script that means us: by its headers.

Any web page can make a browser ask the host (another page's form or script), and one whose name
is suddenly this machine's address (DNS rebinding) is even taken for our own page.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from ..host.base import Exposure

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"https?://((\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?)", re.ASCII)

OURS = ("same-origin", "none")
"""What browsers say of a page of ours, and of an address that was typed."""


def stranger(headers: Mapping[str, str], exposure: Exposure) -> str:
    """Why a request is none of ours, in words; empty if it is one.

    Args:
        headers: by lower-case names.
        exposure: under which names the host is reached.
    """
    told = headers.get("host", "")
    if not is_known(told, exposure):
        return f"the host is not known by the name {told[:100]!r}"
    return foreign(headers, exposure)


def foreign(headers: Mapping[str, str], exposure: Exposure) -> str:
    """Why a request comes from another web page, in words; empty if it does not."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() in exposure.origins:
        return ""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in OURS:
        return f"a request from another web page ({site[:20]})"
    if origin is None:
        return ""
    host = headers.get("host", "").lower()
    found = _ORIGIN.fullmatch(origin.lower())
    if found is not None and (found[1] == host or found[2] in exposure.names):
        return ""
    return f"a request from another web page ({origin[:100]})"


def is_known(host: str, exposure: Exposure) -> bool:
    """Whether a Host header names this machine.

    An address in numbers cannot be rebound: it is the address that was asked. Where the host
    listens beyond this machine, each of them does.
    """
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return False
    name = found[1].strip("[]").rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback or exposure.remote
    except ValueError:
        pass
    if name == "localhost" or name in exposure.names:
        return True
    return any(known.startswith(".") and name.endswith(known) for known in exposure.names)
