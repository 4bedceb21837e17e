"""How children are started: with nothing of the host in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from dreambooth_core.errors import DreamBoothError

HOST_VARIABLES = frozenset(
    {
        # Where Python looks for modules and for itself.
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONSAFEPATH",
        "PYTHONUSERBASE",
        "PYTHONOPTIMIZE",
        "PYTHONEXECUTABLE",
        "PYTHONPLATLIBDIR",
        "PYTHONPYCACHEPREFIX",
        "PYTHONWARNINGS",
        "__PYVENV_LAUNCHER__",
        "VIRTUAL_ENV",
        # Where pip puts things, and how much of them.
        "PIP_BREAK_SYSTEM_PACKAGES",
        "PIP_CONSTRAINT",
        "PIP_DRY_RUN",
        "PIP_EDITABLE",
        "PIP_IGNORE_INSTALLED",
        "PIP_LOG",
        "PIP_NO_DEPS",
        "PIP_NO_DEPENDENCIES",
        "PIP_PREFIX",
        "PIP_PROGRESS_BAR",
        "PIP_PYTHON",
        "PIP_QUIET",
        "PIP_REPORT",
        "PIP_REQUIREMENT",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_ROOT",
        "PIP_TARGET",
        "PIP_UPGRADE",
        "PIP_VERBOSE",
    }
)
"""What a host, or its user for the host's sake, sets and must not reach the engine.

Where packages come from (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, proxies, HF_ENDPOINT …) is the
user's to say and is passed on."""


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment variables without the host's, for pip and for workers."""
    source = os.environ if environ is None else environ
    kept = {key: value for key, value in source.items() if key.upper() not in HOST_VARIABLES}
    # The user's own packages (~/.local) stay out, and pip's configuration cannot ask for them.
    kept.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1", PIP_USER="0")
    return kept


def run_logged(command: Sequence[str], log: IO[str], step: str) -> None:
    """Runs a program in a clean environment, its output going into ``log``.

    Raises:
        DreamBoothError: it failed.
    """
    log.write(f"\n$ {' '.join(command)}\n")
    log.flush()
    done = subprocess.run(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        check=False,
    )
    if done.returncode:
        raise DreamBoothError(
            f"{step} could not be made (exit code {done.returncode})",
            where=command[0],
            do="The log says why; another Python from 3.10 to 3.13 may work",
        )
