"""A share of what the commands in this folder try whole, at each run of the suite, all in one
process: importing takes as long as many of their cases.

``python -m tests.faults`` tries every bad input, ``tests.faults.disk`` a fault at each operation on
the disk, ``tests.faults.kills`` a kill at each thing that a run tells.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARES = {
    "__main__": ["--every", "401"],
    # One in each third of a run, by each signal.
    "kills": ["--processes", "1", "--every", "31"],
    "disk": ["--share", "2", "merge", "adapter to peft, beside others", "run"],
}
"""What each command is asked."""
LARGER = {
    "__main__": ["--every", "101"],
    "kills": SHARES["kills"],
    "disk": ["--share", "4", *SHARES["disk"][2:], "to a folder"],
}
"""With ``--long``."""
BEGINS = "=== begins "
ALL = f"""
import ast, importlib, sys
for name, arguments in ast.literal_eval(sys.argv[1]).items():
    sys.argv[1:] = arguments
    print("{BEGINS}" + name, flush=True)
    code = importlib.import_module("tests.faults." + name).main()
    print("exit code", code, flush=True)
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork")


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> dict[str, str]:
    """What each command said."""
    shares = LARGER if request.config.getoption("--long") else SHARES
    # With as many threads as there are: what is forked can compute all the same.
    given = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", ALL, repr(shares)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=given, check=False)
    parts = done.stdout.split(BEGINS)[1:]
    assert len(parts) == len(SHARES), done.stdout[-4000:] + done.stderr[-4000:]
    return dict(part.split("\n", 1) for part in parts)


def test_bad_inputs_are_told_in_a_line(said: dict[str, str]) -> None:
    assert said["__main__"].endswith("exit code 0\n"), said["__main__"][-4000:]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux: names of handles")
def test_a_failing_disk_leaves_what_was_or_what_was_to_be(said: dict[str, str]) -> None:
    assert said["disk"].endswith("exit code 0\n"), said["disk"][-4000:]


def test_what_is_killed_resumes_to_the_same_bytes(said: dict[str, str]) -> None:
    assert said["kills"].endswith("exit code 0\n"), said["kills"][-4000:]
    assert re.search(r"^[3-9] kills and signals, 0 lost$", said["kills"], re.MULTILINE)
    assert all(name in said["kills"] for name in ("SIGINT", "SIGTERM", "SIGKILL"))
