"""What this machine and this environment can do, and what is wrong with them.

Facts are gathered first (``packages``, ``devices``, ``surroundings``), then judged (``judge``):
a judgement is a pure function, so every one of them is tested without the machine it is about.
"""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.diagnosis.facts import Device, Facts, Kernel, Package, Problem
from dreambooth_core.diagnosis.judge import judge
from dreambooth_core.diagnosis.packages import OPTIONAL, REQUIRED, look
from dreambooth_core.diagnosis.surroundings import hub_cache, place, surroundings

__all__ = ["Device", "Facts", "Kernel", "Package", "Problem", "gather", "judge"]


def gather(runs: Path) -> Facts:
    """Looks at this machine and this environment. Some seconds: libraries are imported.

    Args:
        runs: where runs go.
    """
    packages = tuple(look(name) for name in (*REQUIRED, *OPTIONAL))
    torch = packages[0]
    found: tuple[Device, ...] = ()
    tried: tuple[Kernel, ...] = ()
    build = {}
    if torch.version is not None and not torch.error:
        from dreambooth_core.diagnosis import devices

        build = devices.build_of_torch()
        found = tuple(devices.devices())
        able = [device.name for device in found if not device.error]
        tried = tuple(kernel for name in able for kernel in devices.kernels(name))
    return Facts(
        surroundings=surroundings(),
        packages=packages,
        torch_build=build,
        devices=found,
        kernels=tried,
        places=(place("runs", runs), place("models from the hub", hub_cache())),
    )
