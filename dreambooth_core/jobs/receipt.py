"""``receipt.json``: what ran, with what, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import sys
import time
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.disk import write_text
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.files import to_json
from dreambooth_core.jobs.folder import RunFolder

logger = logging.getLogger(__name__)

DAMAGED = "receipt.damaged.json"
"""Where a receipt that cannot be read is kept."""


def write_receipt(folder: RunFolder, **facts: Any) -> None:
    """Adds ``facts`` to the run's receipt and writes it whole.

    A fact that is a dict is merged into the one of that name, any other replaces it. Version,
    platform and the hash of the configuration are filled in here. A receipt that is damaged is
    kept under another name, and a new one begun: no run depends on it.

    Raises:
        SaveFailed: the disk is full or not writable; the old receipt is untouched.
    """
    try:
        receipt = read_receipt(folder)
    except UserError as error:
        logger.warning("%s; a new one is begun", error.line)
        with contextlib.suppress(OSError):
            folder.receipt.replace(folder.path / DAMAGED)
        receipt = {}
    receipt.update(
        dreambooth=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        written=round(time.time(), 3),
    )
    if folder.config.is_file():
        receipt["config_sha256"] = hashlib.sha256(folder.config.read_bytes()).hexdigest()
    for name, value in facts.items():
        old = receipt.get(name)
        receipt[name] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    write_text(folder.receipt, to_json(receipt, indent=2) + "\n")


def read_receipt(folder: RunFolder) -> dict[str, Any]:
    """The receipt so far; empty if there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        receipt = json.loads(folder.receipt.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot be read: {reason}", where=folder.receipt) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", where=folder.receipt) from error
    if not isinstance(receipt, dict):
        raise UserError("not a JSON object", where=folder.receipt)
    return receipt
