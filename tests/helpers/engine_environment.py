"""The Python that runs the tests, as the environment that a host's extension finds."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from dreambooth_core.environment.layout import Layout, Marker, locate
from dreambooth_core.environment.recipe import (
    packages_fingerprint,
    project_fingerprint,
    recipe_for,
)

ROOT = Path(__file__).parents[2]

BOOT = """\
import os, subprocess, sys
command = [{python!r}, *sys.argv[1:]]
if os.name == "nt":
    sys.exit(subprocess.call(command))
os.execv(command[0], command)
"""
"""Takes the place of the script that runs code with an environment's packages."""


def this_python(home: Path) -> Path:
    """Makes ``home`` an environment that is ready, and whose Python is the running one.

    Returns:
        ``home``, for DREAMBOOTH_ENV.
    """
    home.mkdir(parents=True, exist_ok=True)
    layout: Layout = locate(ROOT, {"DREAMBOOTH_ENV": str(home)})
    layout.boot.write_text(BOOT.format(python=sys.executable), encoding="utf-8")
    version = sys.version_info[:2]
    made = Marker(
        whole=True,
        kind="target",
        base=sys.executable,
        home=str(layout.home),
        python=".".join(platform.python_version_tuple()[:2]),
        packages=packages_fingerprint(recipe_for(layout, version), "auto", {}),
        project=project_fingerprint(layout),
    )
    layout.note(made)
    return layout.home
