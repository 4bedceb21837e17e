"""Numbers that are none, or out of every range, wherever the command line takes one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.case import Case
from tests.faults.inputs._adapters import write_lora

NOT_NUMBERS = ("nan", "inf", "-inf", "NaN", "1e999", "", " ", "one", "1,5", "0x10", "1e5000", "--1")


def cases() -> Iterator[Case]:
    """Weights of a merge; other places follow the same way."""
    for text in NOT_NUMBERS:

        def merge(folder: Path, text: str = text) -> Sequence[str]:
            write_lora(folder / "a.safetensors")
            return ["merge", f"a.safetensors:{text}", "--out", "out.safetensors"]

        yield Case("numbers", f"merge weight {text!r}", merge)
    yield Case("numbers", "merge weight 0.5", lambda f: _merge(f), expected="accepted")


def _merge(folder: Path) -> Sequence[str]:
    write_lora(folder / "a.safetensors")
    return ["merge", "a.safetensors:0.5", "--out", "out.safetensors"]
