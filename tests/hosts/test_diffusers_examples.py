"""diffusers' own tests of its DreamBooth scripts, with ours in place of the scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = (
    "with_metadata",  # the scale is inside the weights here, so that no program can miss it
    *("text_encoder_flux", "text_encoder_sd3"),  # whose text encoders are not trained
    *("dreambooth_if", "lora_if_model"),  # DeepFloyd IF
    *("with_edm", "playground"),  # the EDM objective
    "custom_captions",  # images from a data set on the hub
    "kontext",  # which edits images
)
"""Parts of the names of tests of what is refused in one line, or deliberately otherwise."""


def test_their_tests_pass() -> None:
    named = os.environ.get("DIFFUSERS_EXAMPLES")
    if not named:
        pytest.skip("DIFFUSERS_EXAMPLES does not name the folder examples of diffusers")
    files = sorted(Path(named).joinpath("dreambooth").glob("test_dreambooth*.py"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.hosts.diffusers_examples"),
            *("-p", "no:cacheprovider", "--rootdir", named, "-c", os.devnull, "--noconftest"),
            *("-k", " and ".join(f"not {name}" for name in NOT_OURS), *map(str, files)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
