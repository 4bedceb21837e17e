"""Runs a module or script and writes down the CPU seconds at the end of each optimizer step.

    python benchmarks/stepclock.py CLOCK.json -m package.module ARGUMENT…
    python benchmarks/stepclock.py CLOCK.json script.py ARGUMENT…

Both sides of a comparison are run by it. torch calls the hook after ``step`` of any optimizer;
nothing else of what runs is touched.
"""

from __future__ import annotations

import atexit
import json
import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    """Runs what the command line names."""
    clock, *rest = sys.argv[1:]
    times: list[float] = []

    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
    atexit.register(lambda: Path(clock).write_text(json.dumps(times), encoding="utf-8"))
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path[0] = str(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
