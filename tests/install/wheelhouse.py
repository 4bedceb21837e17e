"""Wheels made on the spot, so that the installer can be tested without a package index."""

from __future__ import annotations

import compileall
import importlib.metadata
import sysconfig
import zipfile
from pathlib import Path


def small_wheelhouse(folder: Path) -> None:
    """pip, flit_core, and two versions of two tiny packages."""
    for name in ("pip", "flit_core"):
        repacked_wheel(folder, name)
    for version in ("1.0", "2.0"):
        tiny_wheel(folder, "tinyone", version)
        tiny_wheel(folder, "tinytwo", version)
    tiny_wheel(folder, "tinytest", "1.0")


TELLS_THE_SEED = """
import sysconfig
sysconfig.get_config_vars()["WHEEL_PKG_DIR"] = {folder!r}
"""


def unpacked_seed(folder: Path) -> None:
    """The pip that comes with Python, unpacked and compiled: a Python whose path begins with this
    folder makes environments with it. From its wheel it is compiled at each start, which takes
    longer than what it does."""
    import ensurepip

    bundled = sysconfig.get_config_var("WHEEL_PKG_DIR")
    place = Path(bundled) if bundled else Path(ensurepip.__file__).parent / "_bundled"
    for wheel in place.glob("pip-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / wheel.name)
        compileall.compile_dir(folder / wheel.name, quiet=2)
    code = TELLS_THE_SEED.format(folder=str(folder))
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")


def tiny_wheel(folder: Path, name: str, version: str, code: str = "", needs: str = "") -> Path:
    """A wheel of one module."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if needs:
        metadata += f"Requires-Dist: {needs}\n"
    files = {
        f"{name}.py": code or f'__version__ = "{version}"\n',
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    _write(wheel, {path: text.encode() for path, text in files.items()}, info)
    return wheel


def repacked_wheel(folder: Path, name: str) -> Path:
    """The wheel of a pure Python distribution that is installed here."""
    installed = importlib.metadata.distribution(name)
    stem = f"{name.replace('-', '_')}-{installed.version}"
    files = {}
    for file in installed.files or ():
        path = Path(str(installed.locate_file(file)))
        inside = file.as_posix()
        if inside.startswith("..") or "__pycache__" in inside or not path.is_file():
            continue
        if path.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            files[inside] = path.read_bytes()
    wheel = folder / f"{stem}-py3-none-any.whl"
    _write(wheel, files, f"{stem}.dist-info")
    return wheel


def _write(wheel: Path, files: dict[str, bytes], info: str) -> None:
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", record)
