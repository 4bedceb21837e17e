"""Whose Python runs the engine, and that hosts can import what they need of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.environment import clone, engine_command, leaked, worker_environment

ROOT = Path(__file__).parents[2]


def make(folder: Path) -> list[str]:
    python = folder.joinpath(*(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
    python.parent.mkdir(parents=True)
    python.write_text("")
    return [str(python)]


def test_which_python(tmp_path: Path) -> None:
    def chosen(**environ: str) -> list[str]:
        return engine_command(environ, root=tmp_path)

    assert chosen() == [sys.executable]
    own = make(tmp_path / ".venv")
    assert chosen() == chosen(DREAMBOOTH_ENV=" ") == own
    other = make(tmp_path / "short")
    assert chosen(DREAMBOOTH_ENV=str(tmp_path / "short")) == other
    with pytest.raises(UserError, match="DREAMBOOTH_ENV names a folder without an environment"):
        chosen(DREAMBOOTH_ENV=str(tmp_path / "none"))


def test_a_python_that_makes_no_environments_runs_its_boot_script(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    boot = tmp_path / ".venv" / "boot.py"
    boot.write_text("")
    assert engine_command({}, root=tmp_path) == [sys.executable, str(boot)]


def test_nothing_of_a_host_leaks() -> None:
    host = {
        "PATH": "/bin",
        "PythonPath": "C:\\host",
        "PYTHONHOME": "/host",
        "PYTHONSTARTUP": "x",
        "PYTHONSAFEPATH": "1",
        "PIP_TARGET": "/host",
        "PIP_INDEX_URL": "https://mirror",
        "VIRTUAL_ENV": "/host/venv",
        "HF_ENDPOINT": "https://mirror",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync",
        "OMP_NUM_THREADS": "1",
    }
    clean = worker_environment(host)
    kept = {"PATH", "PIP_INDEX_URL", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"}
    assert kept == clean.keys() & host.keys()
    assert {clean[name] for name in ("PYTHONUTF8", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER")} == {
        "1"
    }
    assert leaked(host) == ["PIP_TARGET", "PYTHONHOME", "PythonPath"]
    assert leaked(clean) == []
    mine = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert worker_environment(mine)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_the_clone_is_where_the_package_lies() -> None:
    assert clone() == ROOT


STANDARD_LIBRARY_ONLY = """
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import dreambooth_core, dreambooth_core.jobs, dreambooth_core.worker
import dreambooth_core.config.describe, dreambooth_core.config.writing
import dreambooth_core.config.loading, dreambooth_core.config.reading
names = {name.split(".")[0] for name in sys.modules} - {"dreambooth_core", "__main__"}
foreign = {name for name in names if name not in sys.stdlib_module_names
           and not name.startswith(("_sysconfigdata", "__"))}
assert not foreign, foreign
print("fine")
"""


@pytest.mark.parametrize("number", ["3.10", "3.13", "this"])
def test_hosts_need_the_standard_library_alone(number: str) -> None:
    python = _python(number)
    if python is None:
        pytest.skip(f"no Python {number} here")
    # -S leaves out site-packages: a package from there would not be found.
    ran = subprocess.run(
        [python, "-S", "-E", "-W", "error", "-c", STANDARD_LIBRARY_ONLY, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "fine\n", ran.stderr


def _python(number: str) -> str | None:
    if number == "this":
        return sys.executable
    for folder in os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")), "/usr", "/usr/local":
        found = sorted(Path(folder).glob(f"versions/{number}.*/bin/python"))
        found += sorted(Path(folder).glob(f"bin/python{number}"))
        if found:
            return str(found[0])
    return None
