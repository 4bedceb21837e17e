"""Writes locks/: every package of an installation, pinned, with hashes, for all systems at once.

    python tools/lock.py            # needs uv on PATH (or: --uv PATH), and packaging
    python tools/lock.py --upgrade  # newer versions where the requirements allow them
    python tools/lock.py --sizes    # also measures how much an installation downloads

Two locks, because current diffusers and transformers have left Python 3.10 behind: `py310.txt`
holds on 3.10 and 3.11, `py311.txt` on 3.11 to 3.13. Beside each, `<name>-test.txt` holds what
the test extra adds. torch is left out (install.py chooses its build for the machine), and with
it everything that only its GPU builds need: that is in `torch-<build>.txt`. `uv.txt` pins uv, for
Pythons that cannot make a virtual environment themselves.

A hash is written for each wheel that some Python and system of install.py's can install, as the
package index publishes it. No package may lack a wheel where it is wanted: nothing is ever built
from source. torch's own wheels are in `torch.sha256`, which this program only checks: PyTorch's
index is not in every network, so their lines are added by hand, as that index publishes them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from itertools import product
from pathlib import Path
from urllib.request import Request, urlopen

from packaging.markers import Marker
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dreambooth_core.environment.pins import (  # noqa: E402
    Pin,
    hashes_of_torch,
    read_pins,
    read_wheels,
)
from dreambooth_core.environment.torch_builds import BUILDS, TORCH_VERSION  # noqa: E402

LOCKS = ROOT / "locks"
PYTHONS = {"py310": (10, 11), "py311": (11, 12, 13)}
"""The minor versions of Python that each lock serves."""

SYSTEMS = {
    "linux-x86_64": ("linux", "x86_64", r"(manylinux\w*|linux)_x86_64"),
    "linux-aarch64": ("linux", "aarch64", r"(manylinux\w*|linux)_aarch64"),
    "windows": ("win32", "AMD64", "win_amd64"),
    "mac": ("darwin", "arm64", r"macosx_\w+_(arm64|universal2)"),
}
"""sys.platform, platform.machine() and the wheels' platforms of what install.py serves."""

TORCH_NEEDS = [
    "filelock",
    "fsspec>=0.8.5",
    "jinja2",
    "networkx>=2.5.1",
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "typing-extensions>=4.10.0",
]
"""What every build of torch requires, CPU or not (the requirements of the CPU wheel)."""

PARTS = "cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx"
GPU_NEEDS = {
    "cu130": [
        "cuda-bindings>=13.0.3,<14",
        f"cuda-toolkit[{PARTS}]==13.0.3.0",
        "nvidia-cudnn-cu13==9.20.0.48",
        "nvidia-cusparselt-cu13==0.8.1",
        "nvidia-nccl-cu13==2.29.7",
        "nvidia-nvshmem-cu13==3.4.5",
        "triton==3.7.1",
    ],
    "cu126": [
        "cuda-bindings>=12.9.4,<13",
        f"cuda-toolkit[{PARTS}]==12.6.3",
        "nvidia-cudnn-cu12==9.10.2.21",
        "nvidia-cusparselt-cu12==0.7.1",
        "nvidia-nccl-cu12==2.29.3",
        "nvidia-nvshmem-cu12==3.4.5",
        "triton==3.7.1",
    ],
}
"""What the CUDA builds of torch require on Linux beyond that (their wheels' requirements). On
Windows the wheel brings its own. What ROCm's and Intel's builds need is not in the package index,
or not with hashes: see torch_builds.py."""

WITHOUT = "torch; sys_platform == 'none'"
"""An override whose marker never holds: the resolver takes torch for already there."""

HEADER = """\
# Made by tools/lock.py from pyproject.toml; do not edit.
# Python {pythons}, every system. torch is not here: install.py chooses its build.
# download-bytes: {size}
"""


def resolve(
    uv: str,
    requirements: list[str],
    python: int,
    constraints: list[str] | None = None,
    before: list[Pin] | None = None,
) -> list[Pin]:
    """The pins for ``requirements`` and all that they need, without hashes.

    ``before`` are preferred to other versions where they still fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"wanted": requirements, "limits": constraints or [], "without": [WITHOUT]}
        inputs["out"] = [pin.line for pin in before or []]
        paths = {name: Path(folder, f"{name}.txt") for name in inputs}
        for name, lines in inputs.items():
            paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [uv, "pip", "compile", "--universal", "--python-version", f"3.{python}"]
        command += ["--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
        command += ["--no-config", "--no-emit-index-url", "--overrides", str(paths["without"])]
        command += ["--output-file", str(paths["out"])]
        command += ["--constraints", str(paths["limits"]), str(paths["wanted"])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"lock: uv found no solution for Python 3.{python}:\n{done.stderr}")
        pins = read_pins(paths["out"].read_text(encoding="utf-8"))
    return [pin for pin in pins if pin.name != "torch"]


@cache
def index() -> str:
    """The package index that pip is configured for."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return os.environ.get("PIP_INDEX_URL") or configured.strip() or "https://pypi.org/simple"


@cache
def wheels_of(package: str) -> dict[str, str]:
    """The digests of a package's wheels, by file name, as the index publishes them."""
    wanted = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urlopen(Request(f"{index().rstrip('/')}/{package}/", headers=wanted), timeout=60) as page:
        files = json.load(page)["files"]
    return {
        file["filename"]: file["hashes"]["sha256"]
        for file in files
        if file["filename"].endswith(".whl") and not file.get("yanked")
    }


def hashed(pin: Pin, pythons: tuple[int, ...]) -> Pin:
    """The pin with the hashes of every wheel that a served Python and system can install."""
    version = pin.requirement.partition("==")[2]
    wheels = []
    for file, digest in wheels_of(pin.name).items():
        if f"-{version}-" in file:  # old files may have names that cannot be read any more
            wheels.append((digest, parse_wheel_filename(file)[3]))
    taken: set[str] = set()
    for python, (system, (platform, machine, pattern)) in product(pythons, SYSTEMS.items()):
        environment = {
            "python_version": f"3.{python}",
            "python_full_version": f"3.{python}.9",
            "sys_platform": platform,
            "platform_machine": machine,
            "os_name": "nt" if platform == "win32" else "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        if pin.marker and not Marker(pin.marker).evaluate(environment):
            continue
        fitting = {
            digest
            for digest, tags in wheels
            if any(
                fits(tag.interpreter, tag.abi, python)
                and (tag.platform == "any" or re.fullmatch(pattern, tag.platform))
                for tag in tags
            )
        }
        if not fitting:
            sys.exit(f"lock: {pin.requirement} has no wheel for Python 3.{python} on {system}")
        taken |= fitting
    return Pin(pin.requirement, pin.marker, tuple(sorted(taken)))


def fits(interpreter: str, abi: str, python: int) -> bool:
    """Whether a wheel's tags are for CPython 3.``python``."""
    if interpreter == f"cp3{python}":
        return abi in (f"cp3{python}", "abi3", "none")
    older = re.fullmatch(r"(cp|py)3(\d+)?", interpreter)
    if not older or int(older[2] or 0) > python:
        return False
    return abi == ("abi3" if older[1] == "cp" else "none")


def measure(pins: list[Pin]) -> int:
    """Bytes that pip downloads for these pins on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, wheels = Path(folder, "wanted.txt"), Path(folder, "wheels")
        wanted.write_text("\n".join(pin.text for pin in pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*command, "-r", str(wanted), "-d", str(wheels)], check=True)
        return sum(wheel.stat().st_size for wheel in wheels.iterdir())


def recorded_size(path: Path) -> int:
    """The size that an earlier lock recorded, or 0."""
    if not path.is_file():
        return 0
    found = re.search(r"^# download-bytes: (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


def write(
    name: str, pins: list[Pin], pythons: tuple[int, ...], words: str, sizes: bool = False
) -> None:
    """Writes one lock with its header."""
    path = LOCKS / f"{name}.txt"
    pins = [hashed(pin, pythons) for pin in pins]
    size = measure(pins) if sizes else recorded_size(path)
    text = HEADER.format(pythons=words, size=size) + "\n".join(pin.text for pin in pins) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    files = sum(len(pin.hashes) for pin in pins)
    print(f"{path.relative_to(ROOT)}: {len(pins)} packages, {files} wheels, {size / 1e6:.0f} MB")


def held(name: str, upgrade: bool) -> list[Pin]:
    """What a lock holds already, to be preferred."""
    path = LOCKS / f"{name}.txt"
    if upgrade or not path.is_file():
        return []
    return read_pins(path.read_text(encoding="utf-8"))


def check_torch() -> None:
    """Compares torch.sha256 with the index, and says for which machines it has no hash."""
    table = read_wheels((LOCKS / "torch.sha256").read_text(encoding="utf-8"))
    for file, digest in wheels_of("torch").items():
        if file in table and table[file] != digest:
            sys.exit(f"lock: the index has another digest of {file} than torch.sha256")
    for build, python in product(BUILDS.values(), range(10, 14)):
        for system, (platform, machine, _) in SYSTEMS.items():
            if platform not in build.megabytes:
                continue
            architecture = {"aarch64": "arm64", "AMD64": "x86_64"}.get(machine, machine)
            versions = [build.version(platform)]
            if not hashes_of_torch(table, versions, (3, python), platform, architecture):
                print(f"no hash: torch {TORCH_VERSION} {build.name}, Python 3.{python}, {system}")


def main() -> None:
    """Resolves and writes all locks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uv", default=shutil.which("uv"), help="the uv program")
    parser.add_argument("--sizes", action="store_true", help="measure the downloads anew")
    parser.add_argument("--upgrade", action="store_true", help="take newer versions")
    args = parser.parse_args()
    if not args.uv:
        sys.exit("lock: uv was not found. Install it (pip install uv) or name it with --uv.")
    settings = tomllib.loads(Path(ROOT, "pyproject.toml").read_text(encoding="utf-8"))
    project, kept = settings["project"], settings["tool"]["dreambooth"]["lock"]
    build = settings["build-system"]["requires"]
    for name, pythons in PYTHONS.items():
        extras = project["optional-dependencies"]
        core = [*extras["engine"], *TORCH_NEEDS, *build, "pip", *kept[name]]
        test = extras["test"]
        before = held(name, args.upgrade) + held(f"{name}-test", args.upgrade)
        every = resolve(args.uv, core + test, pythons[0], before=before)
        limits = [pin.line for pin in every]
        needed = {pin.name for pin in resolve(args.uv, core, pythons[0], constraints=limits)}
        lines = [pin for pin in every if pin.name in needed]
        added = [pin for pin in every if pin.name not in needed]
        words = "3.10 and 3.11" if name == "py310" else "3.11 to 3.13"
        write(name, lines, pythons, words, args.sizes)
        write(f"{name}-test", added, pythons, words, args.sizes)
    every_python = tuple(range(10, 14))
    for name, needs in GPU_NEEDS.items():
        linux = [f"{need} ; sys_platform == 'linux'" for need in needs]
        before = held(f"torch-{name}", args.upgrade)
        common = {pin.name for pin in resolve(args.uv, TORCH_NEEDS, 10)}
        pins = [p for p in resolve(args.uv, linux, 10, before=before) if p.name not in common]
        write(f"torch-{name}", pins, every_python, "3.10 to 3.13")
    write("uv", resolve(args.uv, ["uv"], 10, before=held("uv", args.upgrade)), every_python, "any")
    check_torch()


if __name__ == "__main__":
    main()
