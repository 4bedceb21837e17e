"""The older lock serves Python 3.10; what the engine calls of it is tried on 3.11 as well."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from dreambooth_core.environment import clean_environment
from tests.helpers.kept_environments import kept

ROOT = Path(__file__).resolve().parents[2]
IMPORTS_ALL = """
import importlib, pkgutil, sys, warnings
from pathlib import Path
import diffusers, dreambooth_core, pytest, transformers

@pytest.mark.library_api
def test_every_module_imports():
    assert (diffusers.__version__, transformers.__version__) == ("0.41.0", "5.20.2")
    assert Path(diffusers.__file__).is_relative_to(sys.prefix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(dreambooth_core.__path__, "dreambooth_core."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
"""
"""A test for the other Python: one process does all, as its imports take longer than the tests."""

BORROWS = "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main())"


def entries(lock: str) -> Iterator[tuple[str, str, str]]:
    """Name, version and the lines (with their hashes) of each package in a lock."""
    for found in re.finditer(r"^([\w.-]+)==([^\s;]+).*(?:\n[ \t].*)*", lock, re.MULTILINE):
        yield found[1], found[2], found[0]


def here(name: str) -> str | None:
    """The version of a package in the Python that runs the tests."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def make_older(folder: Path, python: Path, listed: Path) -> None:
    """A Python with what the older lock alone has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-deps", "--ignore-installed", "-r", str(listed)]
    subprocess.run(pip, env=clean_environment(), check=True)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with what the older lock alone has, kept in the cache as long as that is the same:
    installing it takes as long as all that it is tried with."""
    lock = (ROOT / "locks" / "py310.txt").read_text(encoding="utf-8")
    others = [lines for name, wanted, lines in entries(lock) if here(name) != wanted]
    assert any(lines.startswith("transformers==") for lines in others)
    listed = tmp_path_factory.mktemp("older") / "others.txt"
    listed.write_text("\n".join(others), encoding="utf-8")
    return str(
        kept("older", listed.read_bytes(), lambda home, python: make_older(home, python, listed))
    )


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the older lock is for 3.10 and 3.11")
def test_all_imports_and_library_calls_work_with_the_older_lock(
    older: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    imports = tmp_path / "test_imports.py"
    imports.write_text(IMPORTS_ALL, encoding="utf-8")
    marked = [
        str(file)
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.library_api" in file.read_text(encoding="utf-8")
    ]
    # What both locks have it borrows, with torch and the test tools, from the Python that runs the
    # tests. Behind its own packages on the path: what the older lock holds comes first.
    command = [older, "-c", BORROWS, sysconfig.get_path("purelib")]
    command += ["-q", "-m", "library_api and not slow"]
    if not request.config.getoption("--long"):
        # Each call once: what other models and channels change is not in the libraries' hands.
        command += ["-k", "not sd2 and not -9]"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(imports)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *marked],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)
