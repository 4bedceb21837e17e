"""Finds everything out. Nothing here fails because something is missing: that is a finding."""

from __future__ import annotations

from pathlib import Path

from dreambooth_core.diagnosis.facts import Device, Facts, Kernel
from dreambooth_core.diagnosis.packages import OPTIONAL, REQUIRED, look
from dreambooth_core.diagnosis.surroundings import hub_cache, place, surroundings


def gather(runs: Path) -> Facts:
    """Looks at this machine and this environment. Some seconds: libraries are imported.

    Args:
        runs: where runs go.
    """
    packages = tuple(look(name) for name in (*REQUIRED, *OPTIONAL))
    torch = packages[0]
    works = torch.version is not None and not torch.error
    found: tuple[Device, ...] = ()
    tried: tuple[Kernel, ...] = ()
    build = {}
    if works:
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
