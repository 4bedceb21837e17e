"""A share of the bad inputs at each run of the suite; ``python -m tests.faults`` runs them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork of one process")
def test_a_share_of_the_corpus() -> None:
    command = [sys.executable, "-m", "tests.faults", "--every", "101"]
    # With as many threads as there are: what is forked can compute all the same.
    given = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
