"""Which build of torch fits a machine, and where it comes from.

Tested: CPU on Linux. Expected to work, from the builds' own documentation: the rest.
Sources: PyTorch's release matrix (RELEASE.md) for the architectures of each CUDA build, and
NVIDIA's release notes for the oldest driver of each CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dreambooth_core.environment.machine import Machine, NvidiaGpu
from dreambooth_core.errors import UserError

TORCH_VERSION = "2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl"

XFORMERS_FOR_TORCH = {"2.13.0": "0.0.35"}
"""xformers by the torch it was built for. 0.0.35 uses torch's stable ABI: torch 2.10 and newer."""


@dataclass(frozen=True)
class Build:
    """One build of torch."""

    name: str
    """The folder of the index and the version's local part: ``cpu``, ``cu130`` …"""
    label: str
    megabytes: Mapping[str, int]
    """About what it downloads with all it needs, by system. A system that is missing: no build."""
    default_on: frozenset[str] = frozenset()
    """Systems whose build in the Python Package Index is this one, without a local version."""
    drivers: Mapping[str, tuple[int, ...]] | None = None
    """The oldest NVIDIA driver, by system."""
    capabilities: tuple[tuple[int, int], tuple[int, int]] | None = None
    """The first and last compute capability that it has kernels for."""

    def requirement(self, system: str) -> str:
        """What pip is asked for, worded so that no other build can be taken.

        A build with a local version is asked for by it. The Linux build of the Python Package
        Index has none, and ``===`` keeps pip from preferring one that has (a folder of wheels
        with the CPU build, say); on Windows and macOS any 2.13.0 there is the CPU build.
        """
        exact = system in self.default_on and self.name != "cpu"
        return f"torch{'===' if exact else '=='}{self.version(system)}"

    def version(self, system: str) -> str:
        """The version with its local part, where this build has one."""
        return TORCH_VERSION if system in self.default_on else f"{TORCH_VERSION}+{self.name}"

    def index(self, system: str) -> str | None:
        """The index that has it; None where pip's own does."""
        return None if system in self.default_on else f"{PYTORCH_INDEX}/{self.name}"


BUILDS = {
    build.name: build
    for build in (
        Build(
            "cpu",
            "CPU",
            {"linux": 190, "win32": 120, "darwin": 90},
            default_on=frozenset({"win32", "darwin"}),
        ),
        Build(
            "cu130",
            "CUDA 13.0",
            {"linux": 2400, "win32": 1900},
            default_on=frozenset({"linux"}),
            drivers={"linux": (580, 65), "win32": (580, 88)},
            capabilities=((7, 5), (12, 9)),
        ),
        Build(
            "cu126",
            "CUDA 12.6",
            {"linux": 3000, "win32": 2600},
            drivers={"linux": (525, 60), "win32": (528, 33)},
            capabilities=((5, 0), (9, 0)),
        ),
        Build("rocm7.2", "ROCm 7.2", {"linux": 5000}),
        Build("xpu", "Intel XPU", {"linux": 2800, "win32": 2000}),
    )
}
"""By name; of the CUDA builds the preferred one first."""


@dataclass(frozen=True)
class Choice:
    """The build to install, and why."""

    build: Build
    reason: str
    """What was seen: ``NVIDIA RTX 4090, driver 581.15``."""
    warning: str | None = None
    """What the user should know: a GPU that cannot be used as things are, and what would help."""


def choose(machine: Machine, asked: str = "auto") -> Choice:
    """The build for a machine, or the one that was asked for by name.

    Raises:
        UserError: there is no such build, or none for this system.
    """
    _refuse_without_wheels(machine)
    if asked != "auto":
        return _named(machine, asked)
    if machine.nvidia:
        return _for_nvidia(machine)
    if machine.amd and machine.system == "linux":
        return Choice(BUILDS["rocm7.2"], "an AMD GPU that ROCm lists")
    if machine.intel:
        return Choice(BUILDS["xpu"], "an Intel GPU with XPU support")
    if machine.system == "darwin":
        return Choice(BUILDS["cpu"], "Apple silicon: its GPU is used through MPS")
    warning = None
    if machine.amd:
        warning = "torch has no build for AMD GPUs on Windows; Linux and WSL 2 have one"
    return Choice(BUILDS["cpu"], "no GPU was found", warning)


def _refuse_without_wheels(machine: Machine) -> None:
    if machine.system == "darwin" and machine.architecture != "arm64":
        raise UserError(
            f"torch {TORCH_VERSION} does not exist for Macs with an Intel processor",
            do="Use a Mac with Apple silicon, Linux or Windows",
        )
    if machine.system not in ("linux", "win32", "darwin"):
        raise UserError(f"torch {TORCH_VERSION} does not exist for {machine.system}")


def _named(machine: Machine, asked: str) -> Choice:
    names = [name for name, build in BUILDS.items() if machine.system in build.megabytes]
    if asked not in names:
        raise UserError(
            f"there is no build {asked!r} of torch {TORCH_VERSION} for {machine.system}",
            where="--torch",
            do=f"Choose one of: auto, {', '.join(names)}",
        )
    return Choice(BUILDS[asked], "asked for with --torch")


def _for_nvidia(machine: Machine) -> Choice:
    """The first CUDA build that serves the most capable GPU with its driver."""
    gpu = max(machine.nvidia, key=lambda gpu: gpu.capability or (0, 0))
    seen = f"{gpu.name}, driver {'.'.join(str(part) for part in gpu.driver)}"
    cuda = [build for build in BUILDS.values() if build.drivers]
    fitting = [build for build in cuda if _has_kernels(build, gpu)]
    for build in fitting:
        assert build.drivers is not None
        if gpu.driver >= build.drivers[machine.system]:
            return Choice(build, seen)
    if not fitting:
        return Choice(BUILDS["cpu"], seen, f"torch {TORCH_VERSION} has no kernels for {gpu.name}")
    oldest = min(build.drivers[machine.system] for build in fitting if build.drivers)
    needed = ".".join(str(part) for part in oldest)
    warning = (
        f"the NVIDIA driver is too old for {gpu.name} with torch {TORCH_VERSION}: update it to "
        f"{needed} or newer, then run `python install.py --rebuild`; until then the CPU is used"
    )
    return Choice(BUILDS["cpu"], seen, warning)


def _has_kernels(build: Build, gpu: NvidiaGpu) -> bool:
    """Whether a build has code for a GPU. A driver that cannot tell is too old for new GPUs."""
    assert build.capabilities is not None
    capability = gpu.capability or (7, 0)
    return build.capabilities[0] <= capability <= build.capabilities[1]
