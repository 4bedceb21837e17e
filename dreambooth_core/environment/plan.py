"""What building the environment would download, told before anybody asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.environment.layout import Layout
from dreambooth_core.environment.machine import detect
from dreambooth_core.environment.recipe import recipe_for
from dreambooth_core.environment.sources import package_place
from dreambooth_core.environment.torch_builds import TORCH_VERSION, choose

UNPACKED = 4
"""Disk space that an installation needs, in times of its download."""

CHECKED = "every file against its hash"
UNCHECKED = (
    "every file against its hash, but not torch and what comes with it: no hash of this build is "
    "known, and PyTorch's own index is trusted for it"
)


def plan(layout: Layout, environ: Mapping[str, str] | None = None) -> dict[str, object]:
    """The build of torch, why, about how many megabytes, from where, and the room on the disk.

    pip's own configuration is not asked (that takes a while and needs pip): a mirror or a local
    folder of wheels that it names is used all the same.

    Raises:
        DreamBoothError: torch does not exist for this machine.
    """
    variables = os.environ if environ is None else environ
    known = layout.known()
    machine = detect()
    choice = choose(machine, known.asked if known and known.asked != "none" else "auto")
    name, recipe = choice.build.name, recipe_for(layout)
    needs = name == "cpu" or recipe.beside(f"torch-{name}")
    place = variables.get("TORCH_INDEX_URL") or choice.build.index(machine.system)
    hashes = recipe.torch_hashes([choice.build.version(machine.system)], machine)
    megabytes = choice.build.megabytes[machine.system] + recipe.download_bytes() // 1_000_000
    general = package_place(variables, {})
    return {
        "torch": f"{TORCH_VERSION} ({choice.build.label})",
        "because": choice.reason,
        "warning": choice.warning or "",
        "checked": CHECKED if hashes and needs else UNCHECKED,
        "download_megabytes": megabytes,
        "disk_megabytes": megabytes * UNPACKED,
        "free_megabytes": shutil.disk_usage(_there(layout.home)).free // 1_000_000,
        "from": sorted({place or general, general}),
    }


def _there(folder: Path) -> Path:
    """The nearest folder above that exists: on its disk the other will lie."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def advice(layout: Layout) -> str | None:
    """What would fit this machine better than what is installed; None where all is well.

    A GPU that was added, or a driver that was updated, since the environment was built.
    """
    known = layout.known()
    if known is None or not known.whole or known.asked != "auto":
        return None
    choice = choose(detect())
    if choice.warning:
        return choice.warning
    if choice.build.name == known.torch or choice.build.name == "cpu":
        return None
    return (
        f"torch is the {known.torch} build, but this machine has {choice.reason}: "
        "run `python install.py --rebuild`"
    )
