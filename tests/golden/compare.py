"""The golden file, and what differs from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.golden.measure import Measured, build

FILE = Path(__file__).parent / "golden.json"
TOLERANCE = 1e-6
"""Relative, for losses on another processor or with other versions of the libraries."""


def read() -> dict[str, Any]:
    """The golden file: ``build`` and, by name, ``cases``."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def write(measured: dict[str, Measured]) -> None:
    """Replaces the golden file."""
    cases = {name: one.as_dict() for name, one in measured.items()}
    text = json.dumps({"build": build(), "cases": cases}, indent=1)
    FILE.write_text(text + "\n", encoding="utf-8")


def differences(expected: dict[str, Any], found: Measured, *, exact: bool) -> list[str]:
    """What is not as it was; to the bit, or losses within the tolerance."""
    problems = []
    if len(expected["losses"]) != len(found.losses):
        problems.append(f"{len(found.losses)} steps, not {len(expected['losses'])}")
    for step, (was, now) in enumerate(zip(expected["losses"], found.losses, strict=False), 1):
        before, after = float.fromhex(was), float.fromhex(now)
        off = abs(after - before) / abs(before)
        if was != now and (exact or not off <= TOLERANCE):
            problems.append(f"the loss of step {step} is {after!r}, was {before!r} ({off:.1e})")
    if sorted(expected["results"]) != sorted(found.results):
        problems.append(f"saved {sorted(found.results)}, not {sorted(expected['results'])}")
    elif exact and expected["results"] != found.results:
        changed = [n for n, h in found.results.items() if expected["results"][n] != h]
        problems.append(f"other tensors in {', '.join(changed)}")
    return problems
