"""Writes locks/: every package of an installation, pinned, for all systems at once.

    python tools/lock.py            # needs Python 3.11+ and uv on PATH (or: --uv PATH)
    python tools/lock.py --sizes    # also measures how much an installation downloads

Two locks, because current diffusers and transformers have left Python 3.10 behind: `py310.txt`
holds on 3.10 and 3.11, `py311.txt` on 3.11 to 3.13. Beside each, `<name>-test.txt` holds what
the test extra adds. torch is left out (install.py chooses its build for the machine), and with
it everything that only its CUDA builds need; what every build of torch needs is in.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
PYTHONS = {"py310": "3.10", "py311": "3.11"}
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

WITHOUT = "torch; sys_platform == 'none'"
"""An override whose marker never holds: the resolver takes torch for already there."""

HEADER = """\
# Made by tools/lock.py from pyproject.toml; do not edit.
# Python {pythons}, every system. torch is not here: install.py chooses its build.
# download-bytes: {size}
"""


def resolve(
    uv: str, requirements: list[str], python: str, constraints: list[str] | None = None
) -> list[str]:
    """The locked lines (with markers) for ``requirements`` and all that they need."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"wanted": requirements, "limits": constraints or [], "without": [WITHOUT]}
        paths = {name: Path(folder, f"{name}.txt") for name in inputs}
        for name, lines in inputs.items():
            paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [uv, "pip", "compile", "--universal", "--python-version", python, "--no-config"]
        command += ["--only-binary", ":all:", "--no-header", "--no-annotate", "--quiet"]
        command += ["--no-emit-index-url", "--overrides", str(paths["without"])]
        command += ["--constraints", str(paths["limits"]), str(paths["wanted"])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"lock: uv found no solution for Python {python}:\n{done.stderr}")
    return [line for line in done.stdout.splitlines() if line and name_of(line) != "torch"]


def name_of(line: str) -> str:
    """The package that a locked line pins."""
    return re.split(r"[\[=<>;\s]", line, maxsplit=1)[0]


def measure(lines: list[str]) -> int:
    """Bytes that pip downloads for these lines on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, wheels = Path(folder, "wanted.txt"), Path(folder, "wheels")
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*command, "-r", str(wanted), "-d", str(wheels)], check=True)
        return sum(wheel.stat().st_size for wheel in wheels.iterdir())


def recorded_size(path: Path) -> int:
    """The size that an earlier lock recorded, or 0."""
    if not path.is_file():
        return 0
    found = re.search(r"^# download-bytes: (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


def write(path: Path, lines: list[str], pythons: str, sizes: bool) -> None:
    """Writes one lock with its header."""
    size = measure(lines) if sizes else recorded_size(path)
    text = HEADER.format(pythons=pythons, size=size) + "\n".join(lines) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages, {size / 1e6:.0f} MB")


def main() -> None:
    """Resolves and writes the four files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uv", default=shutil.which("uv"), help="the uv program")
    parser.add_argument("--sizes", action="store_true", help="measure the downloads anew")
    args = parser.parse_args()
    if not args.uv:
        sys.exit("lock: uv was not found. Install it (pip install uv) or name it with --uv.")
    settings = tomllib.loads(Path(ROOT, "pyproject.toml").read_text(encoding="utf-8"))
    project, held = settings["project"], settings["tool"]["dreambooth"]["lock"]
    build = settings["build-system"]["requires"]
    LOCKS.mkdir(exist_ok=True)
    for name, python in PYTHONS.items():
        core = [*project["dependencies"], *TORCH_NEEDS, *build, "pip", *held[name]]
        test = project["optional-dependencies"]["test"]
        every = resolve(args.uv, core + test, python)
        needed = {name_of(line) for line in resolve(args.uv, core, python, constraints=every)}
        lines = [line for line in every if name_of(line) in needed]
        added = [line for line in every if name_of(line) not in needed]
        pythons = "3.10 and 3.11" if name == "py310" else "3.11 to 3.13"
        write(LOCKS / f"{name}.txt", lines, pythons, args.sizes)
        write(LOCKS / f"{name}-test.txt", added, pythons, args.sizes)


if __name__ == "__main__":
    main()
