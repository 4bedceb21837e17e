"""The errors that a person may read: one line that says what, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class DreamBoothError(Exception):
    """Any failure whose message is meant for a person. ``exit_code`` is the command's."""

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | Path | None = None, do: str | None = None
    ) -> None:
        self.what = what.rstrip(".")
        self.where = str(where) if where is not None else None
        self.do = do
        super().__init__(self.line)

    @property
    def line(self) -> str:
        """The whole message: ``where: what. do``."""
        place = f"{shortened(self.where, 300)}: " if self.where else ""
        advice = f". {self.do}" if self.do else ""
        return printable(f"{place}{shortened(self.what)}{advice}")

    def as_dict(self) -> dict[str, str | None]:
        """The parts, for ``--json`` and for user interfaces that mark a field."""
        return {"what": self.what, "where": self.where, "do": self.do, "line": self.line}


def printable(text: str) -> str:
    """One line that a terminal can show: what files say may hold line ends and control codes."""
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    """A text whose control codes and halves of characters are spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, longest: int = 400) -> str:
    """A text without its middle where it is longer: names in files have no limit."""
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


class UserError(DreamBoothError):
    """Wrong usage or bad input: the person can mend it."""

    exit_code = 2


class Unsupported(UserError):
    """A file or an option of a known kind that this program does not handle."""


@contextmanager
def at(where: str | Path, of: str = "") -> Iterator[None]:
    """Inside, a ``UserError`` that does not know its place gets this one, and says of what it
    speaks."""
    try:
        yield
    except UserError as error:
        what = f"{of}: {error.what}" if of else error.what
        raise type(error)(what, where=error.where or where, do=error.do) from error


class Stopped(DreamBoothError):
    """The person asked to stop. Not a failure: what was saved stays."""

    exit_code = 130


class SaveFailed(DreamBoothError):
    """A file could not be written; the file that was there before is untouched."""


class TrainingFailed(DreamBoothError):
    """The run cannot continue: NaN, nothing learns, no memory left."""


class RunGone(DreamBoothError):
    """The run's folder was deleted, or another put in its place, while the run was at work."""


def told(code: int, parts: Mapping[str, str | None]) -> DreamBoothError:
    """The error that another process ended with: its exit code, and what ``as_dict`` made of it."""
    kinds: dict[int, type[DreamBoothError]] = {2: UserError, 130: Stopped}
    kind = kinds.get(code, DreamBoothError)
    return kind(str(parts["what"]), where=parts.get("where"), do=parts.get("do"))


FAILURES = (
    *(DreamBoothError, OSError, MemoryError, RuntimeError, ValueError, TypeError, LookupError),
    *(AttributeError, ArithmeticError, ImportError),
)
"""What work that a run can do without may fail with, ours or a library's. Whoever catches these
says or logs what failed; a mistake of another kind ends the run as it should."""
