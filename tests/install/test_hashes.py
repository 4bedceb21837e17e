"""Only the files that the lock names are installed, wherever they come from."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.environment import locate
from dreambooth_core.environment.builder import Builder
from dreambooth_core.environment.machine import detect
from dreambooth_core.environment.pins import Pin, hashes_of_torch, read_pins, without_hashes
from dreambooth_core.environment.pip import explain
from dreambooth_core.environment.progress import Console, Reporter
from dreambooth_core.environment.sources import Source
from dreambooth_core.environment.torch_builds import BUILDS
from dreambooth_core.errors import UserError
from tests.install.conftest import Clone
from tests.install.wheelhouse import tiny_wheel

TORCH = """
class ones:
    def __init__(self, *shape): pass
    def mm(self, other): return other
"""
ALTERED = TORCH + "print('not from PyTorch')"


@pytest.fixture
def own(clone: Clone, tmp_path: Path) -> Clone:
    """A clone with a folder of wheels of its own, torch among them."""
    clone.wheels = Path(shutil.copytree(clone.wheels, tmp_path / "own wheels"))
    clone.environ["PIP_FIND_LINKS"] = clone.wheels.as_uri()
    tiny_wheel(clone.wheels, "torch", BUILDS["cpu"].version(detect().system), TORCH)
    return clone


def knows(clone: Clone, wheel: Path) -> None:
    """Makes a wheel the one of torch that is published for this machine."""
    version = wheel.name.split("-")[1]
    ends = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64", "macosx_14_0_arm64")
    digest = clone.digest(f"torch=={version}")
    lines = [
        f"{digest}  torch-{version}-cp3{minor}-cp3{minor}-{end}.whl"
        for minor in range(10, 14)
        for end in ends
    ]
    table = clone.root / "locks" / "torch.sha256"
    table.write_text("# made here\n" + "\n".join(lines) + "\n", encoding="utf-8")


def test_an_altered_package_is_refused_with_one_line(own: Clone, tmp_path: Path) -> None:
    """And a program that reads the progress is told the same."""
    tiny_wheel(own.wheels, "tinytwo", "1.0", "print('not from its author')")
    file = tmp_path / "progress.jsonl"
    done = own.install("build", "--torch", "none", "--progress-file", str(file))
    assert done.returncode == 1
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [e["number"] for e in events if e["kind"] == "step"] == [1, 2]
    assert events[-1]["kind"] == "end" and events[-1]["ok"] is False
    assert events[-1]["text"] == done.stderr.strip()
    assert "tinytwo==1.0 is not the file that the lock names" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert own.leftovers() == []


def test_an_altered_torch_is_refused(own: Clone) -> None:
    (wheel,) = own.wheels.glob("torch-*.whl")
    knows(own, wheel)
    tiny_wheel(own.wheels, "torch", BUILDS["cpu"].version(detect().system), ALTERED)
    done = own.install("--torch", "cpu")
    assert done.returncode == 1 and "torch" in done.stderr
    assert "is not the file that the lock names" in done.stderr and own.leftovers() == []


def test_without_a_hash_a_mirror_is_refused(clone: Clone, tmp_path: Path) -> None:
    (clone.root / "locks" / "torch.sha256").write_text("", encoding="utf-8")
    builder = Builder(locate(clone.root, clone.environ), Reporter(Console()), tmp_path / "log")
    mirror = Source("torch==2.13.0", (), "https://mirror.example", 1, ("2.13.0+cpu",))
    with pytest.raises(UserError, match=r"https://mirror\.example: no hash of torch 2\.13\.0\+cpu"):
        builder._say_unverified(mirror, detect())


@pytest.fixture
def torch_index(own: Clone, tmp_path: Path) -> Iterator[Path]:
    """PyTorch's index as this clone knows it, with a build that has no published hash."""
    folder = tmp_path / "index" / "whl" / "rocm7.2" / "torch"
    folder.mkdir(parents=True)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(tmp_path / "index"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    builds = own.root / "dreambooth_core" / "environment" / "torch_builds.py"
    address = f"http://127.0.0.1:{server.server_port}/whl"
    text = builds.read_text(encoding="utf-8")
    builds.write_text(text.replace("https://download.pytorch.org/whl", address), encoding="utf-8")
    own.environ["TORCH_INDEX_URL"] = f"{address}/rocm7.2"
    yield folder
    server.shutdown()
    server.server_close()


def test_without_a_hash_only_pytorchs_own_index_serves(own: Clone, torch_index: Path) -> None:
    tiny_wheel(torch_index, "torch", "2.13.0+rocm7.2", TORCH, needs="tinyrocm>=1")
    needed = torch_index.parent / "tinyrocm"
    needed.mkdir()
    tiny_wheel(needed, "tinyrocm", "1.0")
    tiny_wheel(own.wheels, "torch", "2.13.0+rocm7.2", ALTERED)  # where pip is configured to look
    done = own.install("--torch", "auto")
    assert done.returncode == 0, done.stderr
    assert "no hash of torch 2.13.0+rocm7.2" in done.stdout
    log = own.home.with_name("engine.log").read_text(encoding="utf-8")
    assert "not from PyTorch" not in log

    said = json.loads(own.install("status", "--json").stdout)
    files = sorted(line.split()[1] for line in said["unverified"])
    assert said["ready"]
    assert files == ["tinyrocm-1.0-py3-none-any.whl", "torch-2.13.0+rocm7.2-py3-none-any.whl"]

    tiny_wheel(torch_index, "torch", "2.13.0+rocm7.2", ALTERED, needs="tinyrocm>=1")
    done = own.install("--rebuild")
    assert done.returncode == 1 and "is another file than at the last installation" in done.stderr
    assert json.loads(own.install("status", "--json").stdout) == said


def test_a_pin_survives_writing_and_reading() -> None:
    pins = [
        Pin("pip==26.3"),
        Pin("numpy==2.4.6", "python_full_version < '3.12'", ("a" * 64, "b" * 64)),
    ]
    text = "# a comment\n" + "\n".join(pin.text for pin in pins) + "\n"
    assert read_pins(text) == pins
    assert without_hashes(text).splitlines()[1:] == [pin.line for pin in pins]
    assert (pins[1].name, pins[1].line) == ("numpy", "numpy==2.4.6 ; python_full_version < '3.12'")


def test_hashes_are_those_of_one_machine() -> None:
    names = [
        f"torch-{version}-cp3{minor}-cp3{minor}-{end}.whl"
        for version in ("2.13.0", "2.13.0+cpu", "2.13.0+cu126")
        for minor in (11, 12)
        for end in ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64")
    ]
    table = {name: name for name in names}
    found = hashes_of_torch(table, ["2.13.0+cpu"], (3, 12), "linux", "arm64")
    assert found == ("torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_aarch64.whl",)
    assert hashes_of_torch(table, ["2.13.0"], (3, 11), "win32", "x86_64") == (
        "torch-2.13.0-cp311-cp311-win_amd64.whl",
    )
    assert hashes_of_torch(table, ["2.13.0"], (3, 11), "win32", "arm64") == ()


def test_a_lock_without_a_hash_is_named() -> None:
    said = """ERROR: Hashes are required in --require-hashes mode, but they are missing from some
requirements. Here is a list of those requirements along with the hashes:
    tinyone==1.0 --hash=sha256:abc
"""
    assert explain(said)[0] == "the lock has no hash for tinyone==1.0"
