"""A share of the faults of the disk at each run; ``python -m tests.faults.disk`` tries them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux: forks, and names of handles")
def test_a_share_of_the_faults() -> None:
    command = [sys.executable, "-m", "tests.faults.disk", "--share", "4"]
    scenes = ["merge", "adapter to peft, beside others", "to a folder", "run"]
    done = subprocess.run(
        [*command, *scenes], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
