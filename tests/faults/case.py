"""One bad input, and what the program must do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Expected = Literal["refused", "accepted", "either"]


@dataclass(frozen=True)
class Case:
    """A command line of ``dreambooth`` with the files that it is given.

    ``refused``: it ends with exit code 1 or 2 and one clear line, and leaves the folder as it was.
    ``accepted``: a control; it ends with 0, so that a reader that refuses everything is seen.
    ``either``: whichever, but in the manner of one of the two.
    """

    group: str
    """The class of fault, such as ``adapters``; counts are told by it."""
    name: str
    """Unique within the group: what is wrong, and with which command."""
    make: Callable[[Path], Sequence[str]]
    """Writes the input into an empty folder, which is also the current folder when the command
    runs; returns the arguments after ``dreambooth``."""
    expected: Expected = "refused"
    may_write: bool = False
    """Whether a refusal may leave files: a run that fails later than at its start."""

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


Generator = Callable[[], Iterator[Case]]
"""``cases()`` of a module in ``tests/faults/inputs``: cheap, since nothing is written before a
case is run. The same cases in the same order each time."""
