"""Three ways to make an empty environment, for three kinds of Python."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dreambooth_core.disk import discard, write_text
from dreambooth_core.environment.layout import Layout
from dreambooth_core.environment.pip import Pip
from dreambooth_core.environment.processes import run_logged
from dreambooth_core.environment.recipe import Recipe
from dreambooth_core.errors import DreamBoothError, UserError

BOOT = '''\
"""Runs Python code with the packages of this folder, and none of the Python's own.

    python boot.py -m MODULE [ARGUMENTS]
    python boot.py -c CODE [ARGUMENTS]
    python boot.py SCRIPT [ARGUMENTS]

Made by install.py, for a Python that cannot make virtual environments.
"""

import os
import runpy
import site
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = {root!r}


def of_the_standard_library(path):
    """Not this folder, not the Python's own packages, nothing that a ._pth file points to."""
    path = os.path.abspath(path)
    if path == HERE or os.path.basename(path) in ("site-packages", "dist-packages"):
        return False
    return any(path.startswith(os.path.abspath(p)) for p in (sys.base_prefix, sys.base_exec_prefix))


def main():
    sys.path[:] = [ROOT, *filter(of_the_standard_library, sys.path)]
    packages = os.path.join(HERE, "site")
    sys.path.insert(0, packages)
    site.addsitedir(packages)  # the .pth files in it count too
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what in ("-m", "-c"):
        if len(sys.argv) < 3:
            sys.exit("boot.py: " + what + " needs an argument")
        target = sys.argv[2]
        sys.argv = [what, *sys.argv[3:]]
        if what == "-m":
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            exec(compile(target, "<string>", "exec"), {{"__name__": "__main__"}})
    elif what:
        sys.argv = sys.argv[1:]
        sys.path.insert(0, os.path.dirname(os.path.abspath(what)))
        runpy.run_path(what, run_name="__main__")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
'''


def base_python() -> str:
    """The Python under a virtual environment, or the running one: a host's may be thrown away."""
    return getattr(sys, "_base_executable", None) or sys.executable


def make(layout: Layout, recipe: Recipe, log: IO[str], options: Sequence[str]) -> str:
    """Makes the environment in ``layout.home`` with a current pip in it.

    Returns:
        Its kind: ``venv`` or ``target``.

    Raises:
        DreamBoothError: a step failed.
    """
    kind = "venv" if _has("venv") and _bundled_pip() else "uv"
    if _is_embeddable():
        kind = "target"  # its ._pth file switches virtual environments off
    if kind == "uv":
        try:
            _make_with_uv(layout, recipe, log, options)
            return "venv"
        except _NoUv as reason:
            log.write(f"uv cannot help ({reason}): a folder of packages is made instead\n")
            kind = "target"
    if kind == "target":
        _make_target(layout, recipe, log, options)
        return kind
    command = [base_python(), "-m", "venv", "--without-pip", str(layout.home)]
    run_logged(command, log, "the virtual environment")
    bundled = _bundled_pip()
    assert bundled is not None
    seed = Pip([str(layout.venv_python), str(bundled / "pip")], log, options)
    # Before 24.1 pip cannot tell a program how far a download is.
    seed.install_pins([recipe.pin("pip")], step="pip")
    return kind


class _NoUv(Exception):
    """uv does not exist for this system, or does not serve this Python."""


def _make_with_uv(layout: Layout, recipe: Recipe, log: IO[str], options: Sequence[str]) -> None:
    own = _own_pip(log, options)
    with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
        tools = Path(folder)
        try:
            own.install_pins(recipe.beside("uv"), "--target", folder, step="uv")
        except DreamBoothError as error:
            raise _NoUv(error.line) from error
        own.install_pins([recipe.pin("pip")], "--target", folder, step="pip")
        program = next((p for p in (tools / "bin").glob("uv*") if p.stem == "uv"), None)
        if program is None:
            raise _NoUv("its package holds no program")
        command = [str(program), "venv", "--no-config", "--no-project", "--allow-existing"]
        command += ["--offline", "--python", base_python(), str(layout.home)]
        try:
            run_logged(command, log, "the virtual environment")
        except DreamBoothError as error:
            raise _NoUv(error.line) from error
        seed = Pip([str(layout.venv_python), str(tools / "pip")], log, options)
        # It finds itself in the folder of tools, which is not what is meant by installed.
        seed.install_pins([recipe.pin("pip")], "--ignore-installed", step="pip")


def _make_target(layout: Layout, recipe: Recipe, log: IO[str], options: Sequence[str]) -> None:
    # What uv may have left is no part of this kind.
    for name in ("bin", "Scripts", "lib", "Lib", "lib64", "pyvenv.cfg"):
        path = layout.home / name
        if path.is_dir() and not path.is_symlink():
            discard(path)
        else:
            path.unlink(missing_ok=True)
    layout.site.mkdir()
    write_text(layout.boot, BOOT.format(root=str(layout.root)))
    own = _own_pip(log, options)
    own.install_pins([recipe.pin("pip")], "--target", str(layout.site), step="pip")


def _bundled_pip() -> Path | None:
    """The wheel of pip that comes with Python, and runs from where it lies.

    Quicker than letting venv install it: it is replaced by the locked one at once.
    """
    if not _has("ensurepip"):
        return None
    import ensurepip

    elsewhere = sysconfig.get_config_var("WHEEL_PKG_DIR")  # on Debian and Fedora
    folder = Path(elsewhere) if elsewhere else Path(ensurepip.__file__).parent / "_bundled"
    return next(iter(sorted(folder.glob("pip-*.whl"))), None)


def _own_pip(log: IO[str], options: Sequence[str]) -> Pip:
    """The pip of the running Python, which is only ever told to write elsewhere."""
    if not _has("pip"):
        raise UserError(
            "this Python has neither venv with ensurepip nor pip",
            where=sys.executable,
            do="Install them (on Debian and Ubuntu: apt install python3-venv), or run install.py "
            "with another Python from 3.10 to 3.13",
        )
    return Pip([sys.executable, "-m", "pip"], log, options)


def _is_embeddable() -> bool:
    """Whether this is the embeddable package of python.org: a ``._pth`` file lies beside it."""
    return any(Path(base_python()).parent.glob("python*._pth"))


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
