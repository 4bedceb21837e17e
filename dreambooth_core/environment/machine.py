"""What this machine has that torch can compute with. Asks tools and folders, imports nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

INTEL_XPU_PREFIXES = ("0b", "56", "64", "7d", "e2", "b0")
"""PCI ids of Intel GPUs that torch's XPU build serves: Data Center GPU Max, Arc A, Lunar Lake,
Meteor and Arrow Lake, Arc B, Panther Lake. Older built-in graphics are not among them."""


@dataclass(frozen=True)
class NvidiaGpu:
    """One GPU as ``nvidia-smi`` names it."""

    name: str
    driver: tuple[int, ...]
    capability: tuple[int, int] | None
    """Compute capability; None where the driver is too old to tell."""


@dataclass(frozen=True)
class Machine:
    """What the choice of torch's build depends on."""

    system: str
    """``linux``, ``win32`` or ``darwin``."""
    architecture: str
    """``x86_64`` or ``arm64``, whatever the system calls them."""
    nvidia: tuple[NvidiaGpu, ...] = ()
    amd: bool = False
    intel: bool = False


def detect() -> Machine:
    """Looks at this machine. May take a second or two: drivers are slow to answer."""
    system = "linux" if sys.platform.startswith("linux") else sys.platform
    architecture = {"amd64": "x86_64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if system == "darwin":
        return Machine(system, architecture)
    adapters = _windows_adapters() if system == "win32" else _linux_adapters()
    return Machine(
        system,
        architecture,
        nvidia=_nvidia(),
        amd=_has_rocm_gpu() if system == "linux" else any(v == "1002" for v, _ in adapters),
        intel=any(v == "8086" and d.startswith(INTEL_XPU_PREFIXES) for v, d in adapters),
    )


def parse_nvidia_smi(text: str) -> tuple[NvidiaGpu, ...]:
    """The GPUs in the output of ``nvidia-smi --format=csv,noheader``.

    Lines hold name, driver version and, from drivers that know it, compute capability.
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) < 2 or not re.fullmatch(r"\d+(\.\d+)*", parts[1]):
            continue
        numbers = re.fullmatch(r"(\d+)\.(\d+)", parts[2]) if len(parts) > 2 else None
        capability = (int(numbers[1]), int(numbers[2])) if numbers else None
        driver = tuple(int(part) for part in parts[1].split("."))
        found.append(NvidiaGpu(parts[0], driver, capability))
    return tuple(found)


def _nvidia() -> tuple[NvidiaGpu, ...]:
    program = _nvidia_smi()
    if program is None:
        return ()
    for fields in ("name,driver_version,compute_cap", "name,driver_version"):
        found = parse_nvidia_smi(_ask(program, f"--query-gpu={fields}", "--format=csv,noheader"))
        if found:
            return found
    return ()


def _nvidia_smi() -> str | None:
    """The driver's own program, which is not always on the search path."""
    program = shutil.which("nvidia-smi")
    if program:
        return program
    windows = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
    places = [
        Path("/usr/lib/wsl/lib/nvidia-smi"),
        windows / "System32" / "nvidia-smi.exe",
        Path(os.environ.get("PROGRAMFILES", r"C:\Program Files"))
        / "NVIDIA Corporation/NVSMI/nvidia-smi.exe",
    ]
    return next((str(place) for place in places if place.is_file()), None)


def _ask(*command: str) -> str:
    """What a program prints; empty where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _has_rocm_gpu(nodes: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> bool:
    """Whether Linux' AMD compute driver lists a GPU (its processors are nodes as well)."""
    for properties in nodes.glob("*/properties"):
        try:
            text = properties.read_text(encoding="utf-8")
        except OSError:
            continue
        if re.search(r"^gfx_target_version [1-9]", text, re.MULTILINE):
            return True
    return False


def _linux_adapters(cards: Path = Path("/sys/class/drm")) -> list[tuple[str, str]]:
    """(vendor, device) of the graphics adapters, as four hexadecimal digits."""
    found = []
    for card in cards.glob("card[0-9]*/device"):
        try:
            ids = [(card / name).read_text(encoding="utf-8") for name in ("vendor", "device")]
        except OSError:
            continue
        vendor, device = (part.strip().lower().removeprefix("0x") for part in ids)
        found.append((vendor, device))
    return found


def _windows_adapters() -> list[tuple[str, str]]:
    """The same on Windows, where PowerShell knows them."""
    text = _ask(
        "powershell",
        "-NoProfile",
        "-Command",
        "(Get-CimInstance Win32_VideoController).PNPDeviceID",
    )
    return [(v.lower(), d.lower()) for v, d in re.findall(r"VEN_(\w{4})&DEV_(\w{4})", text)]
