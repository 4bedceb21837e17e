"""What is found out, as data. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

BROKEN, WARNING, NOTE = "broken", "warning", "note"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or worth knowing."""

    severity: str
    """``broken`` (training cannot work, or not as it should), ``warning`` or ``note``."""
    what: str
    do: str


@dataclass(frozen=True)
class Package:
    """A library as it is installed."""

    name: str
    version: str | None
    """None: not installed."""
    error: str = ""
    """Why it cannot be imported, in a line; empty if it can, or was not tried."""


@dataclass(frozen=True)
class Device:
    """Something that torch computes with. Memory in bytes."""

    name: str
    """As ``run.device`` takes it: ``cpu``, ``cuda:0`` …"""
    label: str
    free: int
    total: int
    details: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """What happened when it was asked to compute; empty if it did."""


@dataclass(frozen=True)
class Kernel:
    """An attention kernel that was run forward and backward."""

    device: str
    dtype: str
    head_size: int
    kernel: str
    works: bool
    frugal: bool
    """Whether its memory grows with the sequence, not with its square."""
    reason: str


@dataclass(frozen=True)
class Place:
    """A folder that is written to. Bytes."""

    purpose: str
    path: str
    writable: bool
    free: int
    total: int


@dataclass(frozen=True)
class Surroundings:
    """Python, its environment and the machine around it."""

    dreambooth: str
    python: str
    executable: str
    platform: str
    cores: int
    memory_free: int
    memory_total: int
    environment: str
    """The folder of the engine's environment."""
    inside: bool
    """Whether this Python is that environment's."""
    ready: bool
    reason: str
    """Why the environment is not ready."""
    advice: str | None
    """What build of torch would fit better, as the installer sees it."""
    gpus: tuple[str, ...]
    """NVIDIA GPUs as ``nvidia-smi`` names them, with driver."""
    leaked: tuple[str, ...]
    """Variables that bring another Python's packages."""
    variables: dict[str, str]
    """Variables that change what torch or the hub do."""


@dataclass(frozen=True)
class Facts:
    """All that was found out."""

    surroundings: Surroundings
    packages: tuple[Package, ...]
    torch_build: dict[str, Any]
    """``version``, ``cuda``, ``hip``, ``threads``; empty if torch cannot be imported."""
    devices: tuple[Device, ...]
    kernels: tuple[Kernel, ...]
    places: tuple[Place, ...]

    def package(self, name: str) -> Package | None:
        """The package of that name."""
        return next((each for each in self.packages if each.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)
