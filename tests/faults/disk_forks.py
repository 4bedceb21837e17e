"""One run of a command from which a fork is taken at each operation on the disk, to meet the fault.

The command runs once. At an operation its folder is put aside and a copy takes its place; a fork
goes on in the copy, where the operation fails, and is waited for and judged by the process that
started the command; then the folder comes back and the command goes on undisturbed. So n faults
cost one run, and the part of a run that follows upon each fault.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.faults.failing_disk import FailingDisk

ChosenFaults = Callable[[int], Sequence[str]]
"""The faults to try at the operation with a number, from 1."""


@dataclass(frozen=True)
class Trial:
    """A fork that has met its fault and has ended; ``place`` is as it left it."""

    at: int
    kind: str
    fault: str
    code: int


def trials(
    place: Path, begin: Callable[[FailingDisk], NoReturn], chosen: ChosenFaults, output: Path
) -> Iterator[Trial]:
    """The faults in order. Until the next one is asked for, ``place`` is the fork's.

    Args:
        place: the folder that the command works in.
        begin: does the command on this disk and ends the process; called in a fork.
        chosen: what to try where.
        output: the file for what a fork says.

    Raises:
        RuntimeError: the command itself failed.
    """
    asked, ask = os.pipe()
    told, tell = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(asked)
        os.close(tell)
        begin(FailingDisk(place, branch=_Forks(place, chosen, output, ask, told)))
    os.close(ask)
    os.close(told)
    with os.fdopen(asked, encoding="utf-8") as questions:
        for line in questions:
            yield Trial(**json.loads(line))
            os.write(tell, b".")
    os.close(tell)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError(f"the command that forks are taken from ended with {code}")


@dataclass
class _Forks:
    place: Path
    chosen: ChosenFaults
    output: Path
    ask: int
    told: int

    def __call__(self, disk: FailingDisk, kind: str, number: int) -> bool:
        """Takes the forks of an operation; True in a fork, whose disk fails from here on."""
        return any(self._fork(disk, kind, number, fault) for fault in self.chosen(number))

    def _fork(self, disk: FailingDisk, kind: str, number: int, fault: str) -> bool:
        disk.paused = True
        handles = _handles(self.place)
        aside = self.place.with_name("aside")
        os.rename(self.place, aside)
        link_tree(aside, self.place, {handle.inode for handle in handles})
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            signal.alarm(HANGS)
            os.chdir(self.place)
            for handle in handles:
                handle.lead_to(self.place)
            stream = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            disk.at, disk.fault, disk.branch, disk.paused = number, fault, None, False
            return True
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        trial = {"at": number, "kind": kind, "fault": fault, "code": code}
        os.write(self.ask, json.dumps(trial).encode() + b"\n")
        if not os.read(self.told, 1):
            os._exit(1)  # nobody waits for more
        shutil.rmtree(self.place)
        os.rename(aside, self.place)
        disk.paused = False
        return False


HANGS = 600
"""Seconds after which a command is ended, and counted as a traceback."""


@dataclass(frozen=True)
class _Handle:
    """An open file below the folder."""

    number: int
    name: str
    """Its path from the folder."""
    flags: int
    at: int
    inode: int
    locked: bool
    """By this process: the copy is another file, which nobody has locked."""

    def lead_to(self, place: Path) -> None:
        """The same handle, of the copy."""
        new = os.open(place / self.name, self.flags & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL))
        if self.at:
            os.lseek(new, self.at, os.SEEK_SET)
        if self.locked:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.dup2(new, self.number, inheritable=False)
        os.close(new)


def _handles(place: Path) -> list[_Handle]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that lists
        if not Path(path).is_relative_to(place) or not os.path.exists(path):
            continue
        facts = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/self/fdinfo/{name}").read_text().splitlines()
            if ":\t" in line
        )
        inside = os.path.relpath(path, place)
        flags, at = int(facts["flags"], 8), int(facts["pos"])
        inode = os.stat(path).st_ino
        found.append(_Handle(int(name), inside, flags, at, inode, locked="lock" in facts))
    return found


def link_tree(source: Path, target: Path, copied: Collection[int] = ()) -> None:
    """A copy that shares its files with the original: FailingDisk makes one its own before it is
    written to.

    Args:
        source: a folder.
        target: what must not be there yet.
        copied: inodes of files that are copied instead: who writes to them has them open.
    """
    os.mkdir(target)
    for entry in os.scandir(source):
        there = target / entry.name
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), there)
        elif entry.is_dir():
            link_tree(Path(entry.path), there, copied)
        elif entry.inode() in copied:
            shutil.copy2(entry.path, there)
        else:
            os.link(entry.path, there)
