"""Where packages and torch come from. What the user configured wins over what the table says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dreambooth_core.environment.pip import Pip, hide_credentials
from dreambooth_core.environment.torch_builds import BUILDS, PYTORCH_INDEX, TORCH_VERSION, Build

PYPI = "the Python Package Index"


@dataclass(frozen=True)
class Source:
    """What to ask pip for, and where."""

    requirement: str
    options: tuple[str, ...]
    """pip's options that name the place; none where its own configuration does."""
    where: str
    """The place in words or as an address without credentials."""
    megabytes: int
    """About how much it downloads."""
    versions: tuple[str, ...]
    """The versions of torch, with their local parts, of which one may come from there."""
    index: str = ""
    """The address, where the place is an index that was named for torch."""

    @property
    def official(self) -> bool:
        """Whether it is PyTorch's own index, over a connection that proves it."""
        return self.index.startswith(f"{PYTORCH_INDEX}/")


def package_options(environ: Mapping[str, str]) -> list[str]:
    """pip's options for everything but torch: INDEX_URL, as the WebUI's users know it."""
    index = environ.get("INDEX_URL", "").strip()
    return ["--index-url", index] if index else []


def package_place(environ: Mapping[str, str], configured: Mapping[str, str]) -> str:
    """Where everything but torch comes from."""
    if configured.get("no-index", "0") not in ("0", "false", ""):
        return hide_credentials(configured.get("find-links", "nowhere: pip has no-index"))
    index = environ.get("INDEX_URL", "").strip() or configured.get("index-url", "")
    place = hide_credentials(index) if index else PYPI
    more = set(configured) - {"index-url"}
    return f"{place} and the other places that pip is configured for" if more else place


def torch_source(
    pip: Pip, build: Build, system: str, environ: Mapping[str, str], configured: Mapping[str, str]
) -> Source:
    """Where this build of torch comes from, the first of:

    1. TORCH_INDEX_URL, which also decides the build;
    2. pip's own places, where the Python Package Index has this build or the user configured
       a place that does (a mirror, a folder of wheels);
    3. PyTorch's index for this build.
    """
    size = build.megabytes[system]
    chosen = environ.get("TORCH_INDEX_URL", "").strip()
    if chosen:
        return _chosen_source(chosen, system, size)
    requirement, index = build.requirement(system), build.index(system)
    versions = (build.version(system),)
    own = package_options(environ)
    if index is None:
        place = package_place(environ, configured)
        return Source(requirement, tuple(own), place, size, versions)
    if own or configured:
        found = pip.would_take(requirement, own)
        if found:
            place, bytes_there = _place_of(found)
            return Source(requirement, tuple(own), place, bytes_there or size, versions)
    return Source(requirement, ("--index-url", index), index, size, versions, index)


def _chosen_source(address: str, system: str, size: int) -> Source:
    """What TORCH_INDEX_URL names: one build where it is PyTorch's own index, any elsewhere."""
    known = [build for build in BUILDS.values() if system in build.megabytes]
    if address.startswith(f"{PYTORCH_INDEX}/"):
        name = address.rstrip("/").rpartition("/")[2]
        known = [build for build in known if build.name == name]
    versions = {f"{TORCH_VERSION}+{build.name}" for build in known}
    versions |= {build.version(system) for build in known}
    return Source(
        f"torch=={TORCH_VERSION}",
        ("--index-url", address),
        hide_credentials(address),
        size,
        tuple(sorted(versions)),
        address,
    )


def _place_of(address: str) -> tuple[str, int]:
    """(where a file lies, its megabytes if that can be seen)."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        path = Path(url2pathname(parts.path))
        return f"{path.parent} (on this machine)", round(path.stat().st_size / 1e6)
    return hide_credentials(f"{parts.scheme}://{parts.netloc}"), 0
