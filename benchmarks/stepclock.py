"""Runs a module or script and writes down the time at the end of each optimizer step.

    python benchmarks/stepclock.py CLOCK.json -m package.module ARGUMENT…
    python benchmarks/stepclock.py CLOCK.json script.py ARGUMENT…

Both sides of a comparison are run by it. torch calls the hook after ``step`` of any optimizer;
nothing else of what runs is touched. A GPU is not waited for: its own clock is asked in the end.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[1])
WARM = 5
"""Steps before the cost of a step is measured: the first ones choose kernels and fill caches."""


@dataclass(frozen=True)
class Clocked:
    """What one process took."""

    cpu: list[float]
    """CPU seconds at the end of each step."""
    seconds: float
    """Of a step after the first :data:`WARM`: of a GPU by its own clock, else on the wall."""
    peak: int
    """Bytes: what the GPU's allocator gave out at most, else resident memory."""
    total: float
    """CPU seconds of the whole process."""

    @property
    def cpu_step(self) -> float:
        """CPU seconds of each of those steps."""
        return (self.cpu[-1] - self.cpu[WARM - 1]) / (len(self.cpu) - WARM)


def clocked(
    command: Sequence[str], clock: Path, *, packages: str = "", **variables: str
) -> Clocked:
    """Runs a command under the clock, with ``variables`` in its environment. Linux and macOS.

    ``packages``: a folder in which Python looks before all others.

    Raises:
        SystemExit: it failed, or took too few steps.
    """
    clock.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, __file__, str(clock), *command],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(
                [packages or ROOT, ROOT, os.environ.get("PYTHONPATH", "")]
            ),
            "PYTHONWARNINGS": "ignore",
            **variables,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    told: dict[str, Any] = json.loads(clock.read_text()) if clock.is_file() else {"cpu": []}
    if status or len(told["cpu"]) <= WARM:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{errors[-3000:]}")
    scale = 1 if sys.platform == "darwin" else 1024
    peak = told["peak"] or usage.ru_maxrss * scale
    return Clocked(told["cpu"], told["seconds"], peak, usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Runs what the command line names."""
    clock, *rest = sys.argv[1:]
    cpu: list[float] = []
    marks: list[Any] = []

    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def mark(*_: Any) -> None:
        cpu.append(time.process_time())
        if torch.cuda.is_initialized():
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    def told() -> dict[str, Any]:
        if len(marks) <= WARM:
            return {"cpu": cpu, "seconds": 0.0, "peak": 0}
        steps = len(marks) - WARM
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            milliseconds = marks[WARM - 1].elapsed_time(marks[-1])
            peak = torch.cuda.max_memory_allocated()
            return {"cpu": cpu, "seconds": milliseconds / 1000 / steps, "peak": peak}
        return {"cpu": cpu, "seconds": (marks[-1] - marks[WARM - 1]) / steps, "peak": 0}

    register_optimizer_step_post_hook(mark)
    atexit.register(lambda: Path(clock).write_text(json.dumps(told()), encoding="utf-8"))
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path[0] = str(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
