"""Runs cases, each in a process of its own that starts with everything imported.

A fork for each: no case sees what another left, a hang or a gigabyte costs one process, and
nothing has to be imported two thousand times. POSIX only, as is a part of the faults.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.faults.case import Case

CPU_SECONDS = 10
WALL_SECONDS = 120
"""Longer than :data:`CPU_SECONDS`, for a busy machine; who waits for ever is found all the same."""
MEMORY = 1024**3
"""Bytes more than the process had when it began."""
LONGEST_LINE = 700

OUTCOMES = (
    "refused",
    "accepted",
    "traceback",
    "silent",
    "wrongly refused",
    "unclear",
    "litter",
    "slow",
    "memory",
)
"""The first two are good, each where it is expected."""

PRELOADED = (
    "dreambooth_core.commands.main",
    *(
        f"dreambooth_core.commands.{name}"
        for name in (
            "bake",
            "caption",
            "check",
            "convert",
            "estimate",
            "evaluate",
            "extract",
            "inspect",
            "mask",
            "merge",
            "presets",
            "resize",
            "runs",
            "sample",
            "train",
        )
    ),
    "dreambooth_core.memory.advice",
    "dreambooth_core.trainer.run",
    "torch._dynamo",  # which the first optimizer imports
    "dreambooth_core.formats.adapters.read",
    "dreambooth_core.families.stable_diffusion.read",
    "diffusers",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)


@dataclass
class Outcome:
    """How a case ended."""

    case: Case
    kind: str
    code: int | None
    seconds: float
    grown: int
    """Bytes of memory at the peak beyond those at the start."""
    said: str = field(repr=False, default="")

    @property
    def good(self) -> bool:
        """Whether the program did what it should."""
        return self.kind in ("refused", "accepted")


@dataclass
class _Running:
    case: Case
    pid: int
    began: float
    output: Path
    folder: Path
    killed: bool = False


def preload() -> None:
    """Imports what the commands import when they are called, and takes care that what is forked
    from here can compute: a pool of threads does not outlive a fork, and who waits for it hangs."""
    torch.set_num_threads(1)
    gc.disable()
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("dreambooth_core.deferral").load_libraries()
    # Every run begins with a search for garbage. Among the libraries' objects it takes longer than
    # the run, and writes into each of them, so that the fork has to copy them.
    gc.collect()
    gc.freeze()
    gc.enable()


def run(cases: Sequence[Case], *, side_by_side: int = 2) -> Iterator[Outcome]:
    """Runs the cases and yields their outcomes as they end. Call :func:`preload` before."""
    base = _resident()
    waiting = list(reversed(cases))
    running: dict[int, _Running] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        number = 0
        while waiting or running:
            while waiting and len(running) < side_by_side:
                number += 1
                one = _start(waiting.pop(), Path(root) / str(number))
                running[one.pid] = one
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                _end_hangs(running)
                time.sleep(0.005)
                continue
            if pid in running:
                one = running.pop(pid)
                grown = max(0, usage.ru_maxrss * 1024 - base)
                seconds = usage.ru_utime + usage.ru_stime
                yield _judge(one, status, seconds, grown)
                shutil.rmtree(one.folder.parent, ignore_errors=True)


def _start(case: Case, place: Path) -> _Running:
    folder, output = place / "case", place / "output.txt"
    folder.mkdir(parents=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_child(case, folder, output))
    return _Running(case, pid, time.monotonic(), output, folder)


def _child(case: Case, folder: Path, output: Path) -> int:
    """What the process of one case does; returns its exit code."""
    os.setsid()
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(stream, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    try:
        arguments = [str(a) for a in case.make(folder)]
    except BaseException:  # noqa: BLE001  every one is counted
        traceback.print_exc()
        sys.stderr.flush()
        return BROKEN
    before = listing(folder)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 2, CPU_SECONDS + 2))
    from dreambooth_core.commands.main import main

    try:
        code = main(arguments)
    except SystemExit as ending:  # argparse's own
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001  every one is counted
        traceback.print_exc()
        code = CRASHED
    after = listing(folder)
    if after != before and code in (1, 2) and not case.may_write:
        changed = sorted(set(after.items()) ^ set(before.items()))
        sys.stderr.write(f"\n{LITTER}{[name for name, _ in changed][:5]}\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


BROKEN, CRASHED = 98, 99
LITTER = "LEFT BEHIND: "


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below ``folder`` with its size and time of change."""
    found = {}
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            facts = file.lstat()
            if not file.is_dir():
                found[str(file.relative_to(folder))] = (facts.st_size, facts.st_mtime_ns)
    return found


def _end_hangs(running: dict[int, _Running]) -> None:
    for one in running.values():
        if not one.killed and time.monotonic() - one.began > WALL_SECONDS:
            one.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


def _judge(one: _Running, status: int, seconds: float, grown: int) -> Outcome:
    said = one.output.read_text(encoding="utf-8", errors="replace") if one.output.exists() else ""
    code = os.waitstatus_to_exitcode(status)
    return Outcome(one.case, _kind(one, code, seconds, grown, said), code, seconds, grown, said)


def _kind(one: _Running, code: int, seconds: float, grown: int, said: str) -> str:
    expected = one.case.expected
    if code == BROKEN:
        raise RuntimeError(f"{one.case} could not be made:\n{said}")
    if one.killed or seconds > CPU_SECONDS:
        return "slow"
    if "Traceback (most recent call last)" in said or code not in (0, 1, 2):
        return "traceback"
    if grown > MEMORY:
        return "memory"
    if code == 0:
        return "accepted" if expected in ("accepted", "either") else "silent"
    if expected == "accepted":
        return "wrongly refused"
    if LITTER in said:
        return "litter"
    return "refused" if _is_clear(said) else "unclear"


_UNNAMED = re.compile(r"unexpected [A-Z]")
"""A failure that nobody thought of, told by its exception's name."""


def _is_clear(said: str) -> bool:
    """Whether one line tells what is wrong: ours, or argparse's behind its usage."""
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"(dreambooth( \w+)*: |worker: |failed: |\{\"error\")", line)
    ]
    return len(lines) == 1 and len(lines[0]) <= LONGEST_LINE and not _UNNAMED.search(lines[0])


def _resident() -> int:
    """Bytes of memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
