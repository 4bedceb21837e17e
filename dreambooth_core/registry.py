"""Records by name: families, methods, optimizers. Standard library only.

A record is all that is known of one thing. Ours are added where they are written; those of other
packages are found through their entry points, in the group of the registry, under the record's
name::

    [project.entry-points."dreambooth.optimizers"]
    came = "my_package:CAME"

The object there is the record itself. It is imported when it is asked for, not before, so that a
package that is broken costs whoever uses it one line and nobody else anything.
"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from dreambooth_core import environment
from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import UserError

log = logging.getLogger(__name__)


class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Records by name, ours first, in the order in which they were added.

    Args:
        what: what a record is, in the words of an error: ``optimizer``.
        where: the configuration key by which a person chooses one: ``optim.optimizer``.
        group: the group of entry points: ``dreambooth.optimizers``.
    """

    def __init__(self, what: str, *, where: str, group: str) -> None:
        self.what, self.where, self.group = what, where, group
        self._records: dict[str, T] = {}
        self._added: list[str] = []
        self._broken: set[str] = set()
        self._entries: dict[str, importlib.metadata.EntryPoint] | None = None

    def add(self, *records: T) -> None:
        """Adds records. Raises ``ValueError`` for a name that is taken."""
        for record in records:
            if record.name in self._records:
                raise ValueError(f"there is a {self.what} {record.name!r} already")
            self._records[record.name] = record
            self._added.append(record.name)

    def ours(self) -> dict[str, T]:
        """The records that were added, without those of other packages."""
        return {name: self._records[name] for name in self._added}

    def __getitem__(self, name: str) -> T:
        """The record of a name.

        Raises:
            UserError: there is none, or the package that brings it does not work.
        """
        if name in self._records:
            return self._records[name]
        entry = self._found().get(name)
        if entry is None:
            raise UserError(
                f"{self.what} {name!r} is not known", where=self.where, do=advice(name, self)
            )
        self._records[name] = record = self._load(entry)
        return record

    def __contains__(self, name: object) -> bool:
        return name in self._records or name in self._found()

    def __iter__(self) -> Iterator[str]:
        yield from self._records
        yield from (name for name in self._found() if name not in self._records)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _found(self) -> dict[str, importlib.metadata.EntryPoint]:
        if self._entries is None:
            self._entries = {entry.name: entry for entry in _entry_points(self.group)}
            for name in self._entries.keys() & self._records.keys():
                log.warning(
                    "the %s %r of %s is passed over: that is the name of one of our own",
                    self.what,
                    name,
                    self._entries[name].value,
                )
        return self._entries

    def _load(self, entry: importlib.metadata.EntryPoint) -> T:
        try:
            record: T = entry.load()
            name = record.name
        except Exception as error:
            raise UserError(
                f"the {self.what} {entry.name!r} cannot be loaded from {entry.value}: {error}",
                where=self.where,
                do="Update or remove the package that brings it.",
            ) from error
        if name != entry.name:
            raise UserError(
                f"{entry.value} calls itself {name!r}, its entry point {entry.name!r}",
                where=self.where,
                do="Update or remove the package that brings it.",
            )
        return record

    def working(self) -> list[T]:
        """Every record but those of packages that cannot be loaded, which the log names once."""
        found = []
        for name in self:
            try:
                found.append(self[name])
            except UserError as error:
                if name not in self._broken:
                    log.warning("%s", error.line)
                    self._broken.add(name)
        return found

    def forget(self) -> None:
        """Looks for entry points anew at the next question."""
        for name in self._entries or ():
            self._records.pop(name, None)
        self._entries = None


def engine_packages() -> list[str]:
    """Folders of the engine's own packages, where this is another Python: a host's process,
    which draws choices and leaves the work to the engine's. It finds the names of what is
    installed there without importing it."""
    layout = environment.locate(Path(__file__).resolve().parent.parent)
    here = Path(sys.prefix).resolve()
    return [] if layout.home == here else [str(folder) for folder in layout.packages]


def _entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    found = list(importlib.metadata.entry_points(group=group))
    if folders := engine_packages():
        for package in importlib.metadata.distributions(path=folders):
            found += [entry for entry in package.entry_points if entry.group == group]
    return found
