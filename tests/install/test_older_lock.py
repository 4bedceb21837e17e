"""The older lock serves Python 3.10; what the engine calls of it is tried on 3.11 as well."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dreambooth_core.environment import clean_environment

ROOT = Path(__file__).resolve().parents[2]
IMPORTS_ALL = """
import importlib, pkgutil, sys
import dreambooth_core
failed = []
for module in pkgutil.walk_packages(dreambooth_core.__path__, "dreambooth_core."):
    if module.name.endswith("__main__"):
        continue
    importlib.import_module(module.name)
import diffusers, transformers
print(diffusers.__version__, transformers.__version__, diffusers.__file__)
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the older lock, which borrows torch and the test tools from this one."""
    folder = tmp_path_factory.mktemp("older")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # Behind its own packages on the path: what the older lock holds comes first.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-deps", "--ignore-installed", "--no-compile"]
    subprocess.run(
        [*pip, "-r", str(ROOT / "locks" / "py310.txt")],
        env=clean_environment(),
        check=True,
    )
    return str(python)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the older lock is for 3.10 and 3.11")
def test_every_module_imports_with_the_older_lock(older: str) -> None:
    said = subprocess.check_output(
        [older, "-c", IMPORTS_ALL], cwd=ROOT, env=clean_environment(), text=True
    ).split()
    assert said[:2] == ["0.41.0", "5.20.2"]
    assert Path(said[2]).is_relative_to(Path(older).parents[1])


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the older lock is for 3.10 and 3.11")
def test_the_tests_of_library_calls_pass_with_the_older_lock(older: str) -> None:
    done = subprocess.run(
        [older, "-m", "pytest", "-q", "-m", "library_api and not slow", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 5), done.stdout[-3000:]  # 5: no test has the mark
