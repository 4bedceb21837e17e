"""Finds the generators: every module in ``inputs`` with a function ``cases``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from tests.faults.case import Case, Generator


def collect(groups: Sequence[str] = ()) -> list[Case]:
    """All cases, or those of the named groups.

    Raises:
        ValueError: two cases have one name.
    """
    found: list[Case] = []
    for file in sorted((Path(__file__).parent / "inputs").glob("*.py")):
        if file.stem.startswith("_"):
            continue
        cases: Generator = importlib.import_module(f"tests.faults.inputs.{file.stem}").cases
        found += [case for case in cases() if not groups or case.group in groups]
    names = [str(case) for case in found]
    twice = (
        sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) < len(names)
        else []
    )
    if twice:
        raise ValueError(f"two cases are named {twice[0]}")
    return found
