"""install.py called by hosts: quick, quiet, and never a change to the Python that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.environment import locate
from tests.install.conftest import Clone, cpu_seconds
from tests.install.wheelhouse import tiny_wheel

A1111_PINS = ("transformers==4.30.2", "safetensors==0.4.2", "Pillow==9.5.0")
HIDES_VENV = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("venv", "ensurepip"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""


SAYS_PACKAGES = """
import importlib.metadata, sysconfig
for found in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
    print(found.name, found.version, sep="==")
"""


def freeze(python: str) -> list[str]:
    """What ``pip freeze`` would say of a Python, without the second that pip takes to start."""
    return sorted(subprocess.check_output([python, "-I", "-c", SAYS_PACKAGES], text=True).split())


def without_venv(clone: Clone, folder: Path) -> None:
    """Makes the Python that runs install.py one without ``venv`` and ``ensurepip``."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDES_VENV, encoding="utf-8")
    clone.environ["PYTHONPATH"] = str(folder)


def test_the_webui_is_only_answered(clone: Clone, tmp_path: Path) -> None:
    host = tmp_path / "webui"
    (host / "modules").mkdir(parents=True)
    (host / "modules" / "launch_utils.py").touch()
    clone.environ["PYTHONPATH"] = f"{host}{os.pathsep}{tmp_path}"
    seconds = []
    for _ in range(3):
        begun = cpu_seconds()
        done = clone.install(cwd=host)
        seconds.append(cpu_seconds() - begun)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(seconds) < 1.0
    assert clone.leftovers() == []


def test_the_manager_builds(clone: Clone) -> None:
    """ComfyUI's Manager calls with the pack's folder as the current one, and no PYTHONPATH."""
    del clone.environ["PYTHONPATH"]
    process = clone.start()
    assert process.stdout is not None
    assert "Setting up the engine" in process.stdout.readline()  # far enough
    process.terminate()
    process.communicate(timeout=300)


def test_a_host_with_a1111_pins_is_left_as_it_was(
    clone: Clone, python: str, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    subprocess.run([python, "-m", "venv", "--without-pip", str(host)], check=True)
    scripts = host / ("Scripts" if sys.platform == "win32" else "bin")
    host_python = str(scripts / "python")
    # What tells them from the locked ones is the version: they need not be the packages themselves.
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    wheels = [tiny_wheel(pinned, *pin.split("==")) for pin in A1111_PINS]
    wheels += clone.wheels.glob("pip-*.whl")
    install = [sys.executable, "-m", "pip", "--python", host_python, "install", "--quiet"]
    install += ["--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*install, *map(str, wheels)], check=True)
    before = freeze(host_python)
    assert "safetensors==0.4.2" in before

    # What a host's start script may have set, and would lead pip or Python astray.
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "tinyone.py").write_text("__version__ = 'of the host'", encoding="utf-8")
    clone.environ.update(
        PYTHONPATH=str(trap), PIP_TARGET=str(trap), PIP_PREFIX=str(trap), PIP_REQUIRE_VIRTUALENV="1"
    )
    done = clone.install("--torch", "none", python=host_python)
    assert done.returncode == 0, done.stderr
    assert freeze(host_python) == before
    assert sorted(p.name for p in trap.iterdir()) == ["tinyone.py"]
    layout = locate(clone.root, clone.environ)
    code = "import tinyone; print(tinyone.__version__)"
    assert subprocess.check_output([*layout.command(), "-c", code], text=True).strip() == "1.0"
    # The host's environment may be thrown away: the engine's stands on the Python below it.
    known = layout.known()
    assert known and not Path(known.base).is_relative_to(host)


def test_without_venv_and_uv_a_folder_of_packages_serves(
    clone: Clone, python: str, tmp_path: Path
) -> None:
    without_venv(clone, tmp_path / "hidden")
    before = freeze(python)
    done = clone.install("--torch", "none")
    assert done.returncode == 0, done.stderr
    assert freeze(python) == before
    layout = locate(clone.root, clone.environ)
    known = layout.known()
    assert known and known.kind == "target"
    assert layout.command() == [known.base, str(layout.boot)]
    code = "import sys, tinyone, dreambooth_core; print(tinyone.__version__, *sys.argv)"
    said = subprocess.check_output([*layout.command(), "-c", code, "x"], text=True)
    assert said.split() == ["1.0", "-c", "x"]
    paths = subprocess.check_output(
        [*layout.command(), "-c", "import sys; print(*sys.path, sep='\\n')"], text=True
    ).splitlines()
    assert str(layout.site) in paths
    assert not [p for p in paths if Path(p).name in ("site-packages", "dist-packages")]
    module = subprocess.check_output([*layout.command(), "-m", "tinytwo"], text=True)
    assert module == ""
    # An embeddable Python leaves the script's folder off its path, and may have a host's on it.
    code = "import sys, json, tinyone; print(*sys.path, sep='\\n')"
    isolated = [known.base, "-I", str(layout.boot), "-c", code]
    assert subprocess.check_output(isolated, text=True).splitlines() == paths
    astray = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*layout.command(), "-c", code]
    assert str(tmp_path) not in subprocess.check_output(command, text=True, env=astray).split("\n")
    again = clone.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.network
def test_without_venv_uv_makes_the_environment(clone: Clone, python: str, tmp_path: Path) -> None:
    without_venv(clone, tmp_path / "hidden")
    # uv and all else from the index that the machine is set up for.
    del clone.environ["PIP_NO_INDEX"]
    clone.environ.update(
        {k: v for k, v in os.environ.items() if k in ("PIP_CERT", "PIP_INDEX_URL")}
    )
    before = freeze(python)
    done = clone.install("--torch", "none")
    assert done.returncode == 0, done.stderr
    assert freeze(python) == before
    layout = locate(clone.root, clone.environ)
    known = layout.known()
    assert known and known.kind == "venv"
    assert (layout.home / "pyvenv.cfg").is_file()
    code = "import tinyone; print(tinyone.__version__)"
    assert subprocess.check_output([*layout.command(), "-c", code], text=True).strip() == "1.0"
