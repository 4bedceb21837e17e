"""What a lock holds: packages, each at one version, with the hashes of the files that may serve it.

The files in locks/ are requirements files as pip and uv read them: a line for each package, then
``--hash=sha256:…`` for each wheel of a system and a Python that install.py serves. torch's own
wheels come in many builds from several indexes and stand in a table of their own, as ``sha256sum``
writes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """One package at one version."""

    requirement: str
    """``pip==26.3``."""
    marker: str = ""
    """Where it is wanted (``python_full_version < '3.12'``); empty: everywhere."""
    hashes: tuple[str, ...] = ()
    """SHA-256 digests, in hexadecimal, of the files that may be installed."""

    @property
    def name(self) -> str:
        """The package."""
        return re.split(r"[\[=<>;\s]", self.requirement, maxsplit=1)[0]

    @property
    def line(self) -> str:
        """Without hashes, as a line of a constraints file."""
        return f"{self.requirement} ; {self.marker}" if self.marker else self.requirement

    @property
    def text(self) -> str:
        """With hashes, as lines of a requirements file."""
        return " \\\n    ".join([self.line, *(f"--hash=sha256:{digest}" for digest in self.hashes)])


def read_pins(text: str) -> list[Pin]:
    """The packages of a lock's text."""
    pins = []
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words, *hashes = line.split(" --hash=sha256:")
        requirement, _, marker = words.partition(";")
        pins.append(Pin(requirement.strip(), marker.strip(), tuple(h.strip() for h in hashes)))
    return pins


def without_hashes(text: str) -> str:
    """A lock's text as it was before it had hashes: which versions, and nothing of their files."""
    return re.sub(r" \\\n    --hash=sha256:[0-9a-f]+", "", text)


def read_wheels(text: str) -> dict[str, str]:
    """The digests of a table of wheels, by file name."""
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {name: digest for digest, name in lines}


def hashes_of_torch(
    wheels: Mapping[str, str],
    versions: Iterable[str],
    python: tuple[int, int],
    system: str,
    architecture: str,
) -> tuple[str, ...]:
    """The digests of torch's wheels of some versions (``2.13.0+cu126``) that serve one machine."""
    tag = f"cp{python[0]}{python[1]}"
    ends = {
        "linux": ("_aarch64.whl",) if architecture == "arm64" else ("_x86_64.whl",),
        "win32": ("win_arm64.whl",) if architecture == "arm64" else ("win_amd64.whl",),
        "darwin": (f"_{architecture}.whl",),
    }[system]
    starts = tuple(f"torch-{version}-{tag}-{tag}-" for version in versions)
    linux = system == "linux"
    return tuple(
        digest
        for name, digest in wheels.items()
        if name.startswith(starts) and name.endswith(ends) and linux == ("linux" in name)
    )
