"""install.py as a person runs it, with two tiny packages in place of the engine's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.environment import locate, status
from dreambooth_core.environment.cli import SIDE_BY_SIDE
from tests.helpers.waiting import until
from tests.install.conftest import Clone, cpu_seconds, make_clone
from tests.install.wheelhouse import tiny_wheel

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
SAVES_WHEN_STOPPED = """
import os, signal, sys, time

def save(*_):
    time.sleep(0.5)  # longer than subprocess.run gives a child after Ctrl+C
    os.write(1, b"saved\\n")
    os._exit(130)

signal.signal(signal.SIGINT, save)
os.write(1, b"learning\\n")
while True:
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Clone:
    """A clone whose environment is built; tests leave it so."""
    clone = make_clone(tmp_path_factory.mktemp("built"), wheels)
    done = clone.install("--torch", "none")
    assert done.returncode == 0, done.stderr
    clone.said = done.stdout
    return clone


def engine_says(clone: Clone, code: str) -> str:
    """What code prints in the clone's environment."""
    command = locate(clone.root, clone.environ).command()
    return subprocess.check_output([*command, "-c", code], text=True).strip()


def test_a_build_says_what_it_does_in_a_few_lines(built: Clone) -> None:
    lines = built.said.splitlines()
    assert len(lines) <= 8
    assert "there is none yet" in lines[0]
    assert any("about 1 MB" in line for line in lines)
    assert lines[-1].startswith("Ready after")


def test_the_environment_has_what_the_lock_says(built: Clone) -> None:
    versions = "import tinyone, tinytwo; print(tinyone.__version__, tinytwo.__version__)"
    assert engine_says(built, versions) == "1.0 1.0"
    name = "import importlib.metadata as m; print(m.version('dreambooth-studio'))"
    assert engine_says(built, name)


def test_up_to_date_it_is_silent_and_takes_less_than_a_second(built: Clone) -> None:
    seconds = []
    for _ in range(3):
        begun = cpu_seconds()
        done = built.install()
        seconds.append(cpu_seconds() - begun)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(seconds) < 1.0


def test_a_changed_project_file_only_renews_the_command(built: Clone) -> None:
    project = built.root / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8") + "\n# touched\n", encoding="utf-8")
    before = locate(built.root, built.environ).known()
    done = built.install()
    assert done.returncode == 0, done.stderr
    assert "command anew" in done.stdout
    after = locate(built.root, built.environ).known()
    assert before and after and before.packages == after.packages
    assert built.install().stdout == ""


def test_demo_runs_the_engine_and_passes_arguments(built: Clone) -> None:
    main = built.root / "dreambooth_core" / "__main__.py"
    main.write_text("import sys; print('engine', *sys.argv[1:]); sys.exit(7)", encoding="utf-8")
    done = built.install("demo", "--steps", "3")
    assert done.stdout.split() == ["engine", "demo", "--steps", "3"]
    assert done.returncode == 7


def test_test_adds_the_tools_and_runs_all_three(built: Clone, wheels: Path) -> None:
    for tool in ("ruff", "mypy", "pytest"):
        code = f"import sys; print('{tool}', *sys.argv[1:]); sys.exit('{tool}' == 'mypy')"
        tiny_wheel(wheels, tool, "0.1", code)
    for name in ("py310", "py311"):
        built.write_lock(f"{name}-test", "ruff==0.1", "mypy==0.1", "pytest==0.1")
    done = built.install("test", "-k", "one thing")
    said = done.stdout.splitlines()
    side_by_side = " ".join(["pytest", *SIDE_BY_SIDE])
    assert said[-3:] == ["ruff check .", "mypy", f"{side_by_side} -k one thing"]
    assert done.returncode == 1 and "failed: mypy" in done.stderr
    again = built.install("test")
    assert again.stdout.splitlines() == ["ruff check .", "mypy", side_by_side]


def test_a_failed_refresh_keeps_the_old_environment(built: Clone) -> None:
    lock = {path: path.read_text(encoding="utf-8") for path in (built.root / "locks").iterdir()}
    built.lock("tinyone==9.9")
    done = built.install()
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "has no tinyone==9.9" in done.stderr and "run this again" in done.stderr
    assert engine_says(built, "import tinyone; print(tinyone.__version__)") == "1.0"
    assert built.leftovers() == ["engine"]
    for path, text in lock.items():
        path.write_text(text, encoding="utf-8")
    assert built.install().stdout == ""


def test_a_changed_lock_builds_anew(built: Clone) -> None:
    built.lock("tinyone==2.0", "tinytwo==1.0")
    done = built.install()
    assert done.returncode == 0, done.stderr
    assert "locked versions" in done.stdout
    assert engine_says(built, "import tinyone; print(tinyone.__version__)") == "2.0"
    assert built.leftovers() == ["engine"]


def test_wrong_arguments_are_one_usage_line(built: Clone) -> None:
    done = built.install("--nonsense")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("unknown argument: --nonsense")


def test_no_network_is_said_and_nothing_is_left(clone: Clone) -> None:
    del clone.environ["PIP_NO_INDEX"], clone.environ["PIP_FIND_LINKS"]
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        clone.environ["INDEX_URL"] = f"http://127.0.0.1:{nobody.getsockname()[1]}/simple"
        clone.environ["PIP_RETRIES"] = "0"
        done = clone.install("--torch", "none")
    assert done.returncode == 1
    assert "cannot be reached: is there a network?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert clone.leftovers() == []


def test_a_folder_of_somebody_else_is_not_replaced(clone: Clone) -> None:
    clone.home.mkdir(parents=True)
    (clone.home / "thesis.tex").write_text("years", encoding="utf-8")
    done = clone.install("--torch", "none")
    assert done.returncode == 2
    assert "not an environment that install.py made" in done.stderr
    assert (clone.home / "thesis.tex").read_text(encoding="utf-8") == "years"


@pytest.fixture
def mute_index() -> Iterator[socket.socket]:
    """A package index that takes every question and answers none."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(120)
        yield server


@pytest.fixture
def stuck(clone: Clone, mute_index: socket.socket) -> Clone:
    """A clone whose pip waits for that index."""
    del clone.environ["PIP_NO_INDEX"], clone.environ["PIP_FIND_LINKS"]
    clone.environ["INDEX_URL"] = f"http://127.0.0.1:{mute_index.getsockname()[1]}/simple"
    clone.environ["PIP_RETRIES"] = "0"
    return clone


def start_and_wait_for_pip(
    clone: Clone, index: socket.socket
) -> tuple[subprocess.Popen[str], socket.socket]:
    """Starts install.py and returns when its pip has asked the index: both ends of the wait."""
    process = clone.start("--torch", "none")
    return process, index.accept()[0]


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_leaves_nothing(stuck: Clone, mute_index: socket.socket, number: int) -> None:
    process, connection = start_and_wait_for_pip(stuck, mute_index)
    os.killpg(process.pid, number)  # as a terminal sends it: to all that run in it
    _, said = process.communicate(timeout=300)
    connection.close()
    assert process.returncode == 130, said
    assert said.strip() == (
        "install.py: stopped, nothing half-made is left. Run it again to continue"
    )
    assert stuck.leftovers() == []


@POSIX
def test_what_runs_after_the_build_may_save_when_stopped(built: Clone) -> None:
    main = built.root / "dreambooth_core" / "__main__.py"
    main.write_text(SAVES_WHEN_STOPPED, encoding="utf-8")
    process = built.start("demo")
    assert process.stdout is not None and process.stdout.readline() == "learning\n"
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=300)
    assert (said, process.returncode) == ("saved\n", 130), errors


@POSIX
def test_two_at_once_and_a_killed_one(stuck: Clone, mute_index: socket.socket) -> None:
    process, connection = start_and_wait_for_pip(stuck, mute_index)
    second = stuck.install("--torch", "none")
    assert second.returncode == 1
    assert "another installation" in second.stderr and "Wait" in second.stderr

    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    layout = locate(stuck.root, stuck.environ)
    assert not status(layout).ready, "half an environment must not pass for one"
    # Its pip lives on and would write into the folder: the lock holds until it has ended.
    assert "another installation" in stuck.install("--torch", "none").stderr
    connection.close()
    mute_index.close()
    until(lambda: not FileLock(layout.lock).is_held())
    assert "cannot be reached" in stuck.install("--torch", "none").stderr
    assert stuck.leftovers() == []
