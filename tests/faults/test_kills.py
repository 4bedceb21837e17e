"""A few of the kills and signals of ``python -m tests.faults.kills``, which does all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_what_is_killed_resumes_to_the_same_bytes() -> None:
    """One in each third of a run, by each signal: SIGINT, SIGTERM, SIGKILL."""
    command = [sys.executable, "-m", "tests.faults.kills", "--processes", "1", "--every", "31"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[3-9] kills and signals, 0 lost$", done.stdout, re.MULTILINE)
    assert all(name in done.stdout for name in ("SIGINT", "SIGTERM", "SIGKILL"))
