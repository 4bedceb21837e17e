"""Files and folders are there whole or not at all, and what killed writers leave is cleared up."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import disk
from dreambooth_core.disk import claims, system, writing
from dreambooth_core.errors import SaveFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def a_fresh_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has cleared up nowhere yet."""
    monkeypatch.setattr(claims, "_tidied", set())


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def die(code: str, folder: Path) -> None:
    """Runs ``code`` in a process of its own that ends without cleaning up after itself."""
    text = f"import os\nfrom pathlib import Path\nfrom dreambooth_core import disk\n{code}"
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, check=False, env=environment())
    assert done.returncode == 9


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    disk.write_text(path, "old")
    disk.write_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    if os.name != "nt":
        (tmp_path / "b.txt").write_text("")
        usual = stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == usual

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveFailed, match=r"a\.txt: could not save: the disk is full") as raised:
        disk.write_text(path, "half")
    assert isinstance(raised.value.__cause__, OSError)
    assert contents(path.parent) == {"a.txt": "new é\n"}


@pytest.mark.parametrize("length", [90, 240])
@pytest.mark.parametrize("letter", ["x", "é", "犬"])
def test_long_names(tmp_path: Path, letter: str, length: int) -> None:
    name = letter * (length // len(letter.encode()))
    disk.write_text(tmp_path / name, "x")
    assert names(tmp_path) == {name}


def test_only_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveFailed, match="a folder of this name exists"):
        disk.write_text(tmp_path / "folder", "x")
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(SaveFailed, match="a file of this name exists"),
        disk.replacing_folder(tmp_path / "file"),
    ):
        pass
    with pytest.raises(SaveFailed, match="is a file, not a folder"):
        disk.write_text(tmp_path / "file" / "x.txt", "x")
    with pytest.raises(SaveFailed, match="null"):
        disk.write_text(tmp_path / "a\0b", "x")
    disk.settle(tmp_path / "a\0b" / "c")
    assert names(tmp_path) == {"folder", "file"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").symlink_to("/dev/full")
    for path in (tmp_path / "pipe", tmp_path / "full", Path("/dev/full")):
        with pytest.raises(SaveFailed, match="a device, pipe or the like of this name exists"):
            disk.write_text(path, "x")
    with (
        pytest.raises(SaveFailed, match="pipe: could not save: a device, pipe"),
        disk.exchanging(tmp_path, ["pipe", "b"]) as part,
    ):
        disk.write_text(part / "pipe", "x")
        disk.write_text(part / "b", "x")
    assert names(tmp_path) == {"pipe", "full"}
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_a_link_names_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("old", "none"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "old").write_text("old")
    (tmp_path / "disk" / "model").mkdir()
    (tmp_path / "model").symlink_to("disk/model")
    disk.write_text(tmp_path / "old", "new")
    disk.write_text(tmp_path / "none", "new")
    with disk.replacing_folder(tmp_path / "model") as part:
        disk.write_text(part / "a", "new")
    assert all((tmp_path / name).is_symlink() for name in ("old", "none", "model"))
    assert contents(tmp_path / "disk") == {"old": "new", "none": "new", "model/a": "new"}


def test_a_folder_is_exchanged_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ({"unet/a": "1", "stale": "1"}, {"unet/b": "2", "index": "2"}):
        with disk.replacing_folder(path) as part:
            for name, text in content.items():
                disk.write_text(part / name, text)
            assert not path.exists() or contents(path) != content
        assert contents(tmp_path) == {f"model/{name}": text for name, text in content.items()}


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("unet/a", "stale", "notes.txt"):
        disk.write_text(path / name, "old")
    with disk.replacing_folder(path, ["unet", "stale", "index"]) as part:
        disk.write_text(part / "unet" / "b", "new")
        disk.write_text(part / "index", "new")
    assert contents(tmp_path) == {
        "model/notes.txt": "old",
        "model/unet/b": "new",
        "model/index": "new",
    }


def test_a_failure_inside_leaves_everything(tmp_path: Path) -> None:
    path = tmp_path / "model"
    disk.write_text(path / "a", "old")
    before = contents(tmp_path)

    def fail(part: Path) -> None:
        disk.write_text(part / "a", "new")
        disk.write_text(part / "a" / "b", "no folder")

    with pytest.raises(SaveFailed) as raised, disk.replacing_folder(path) as part:
        fail(part)
    assert raised.value.where == str(path / "a" / "b")
    assert contents(tmp_path) == before
    assert names(tmp_path) == {"model", "model/a"} or os.name == "nt"


@pytest.mark.parametrize("failing", range(1, 6))
def test_a_failed_exchange_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the renames fails; where taking it back fails too, the next start ends it."""
    for name in ("a", "b/x"):
        disk.write_text(tmp_path / name, "old")
    calls = 0

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "Input/output error")
        os.replace(source, target)

    monkeypatch.setattr(claims, "rename", rename)

    def exchange() -> None:
        with disk.exchanging(tmp_path, ["a", "b", "c"]) as part:
            for name in ("a", "b/x", "c"):
                disk.write_text(part / name, "new")

    with pytest.raises(SaveFailed, match="Input/output error"):
        exchange()
    assert contents(tmp_path) == {"a": "old", "b/x": "old"}
    assert names(tmp_path) == {"a", "b", "b/x"}
    exchange()
    assert contents(tmp_path) == {"a": "new", "b/x": "new", "c": "new"}


WRITE = "with disk.exchanging('.', ['a', 'b', 'c']) as part:\n"
NEW = "".join(f"    disk.write_text(part / '{name}', 'new')\n" for name in ("a", "b/x"))
STOP = """
from dreambooth_core.disk import claims
true, left = claims.rename, {after}
def rename(source, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    true(source, target)
claims.rename = rename
"""


@pytest.mark.parametrize("after", range(5))
def test_a_kill_within_an_exchange_is_ended_by_the_next_start(tmp_path: Path, after: int) -> None:
    for name in ("a", "b/x", "c", "other"):
        disk.write_text(tmp_path / name, "old")
    die(STOP.format(after=after) + WRITE + NEW, tmp_path)
    seen = {name: text for name, text in contents(tmp_path).items() if not name.startswith(".")}
    del seen["other"]
    assert len(set(seen.values())) <= 1, "a mixture"
    disk.settle(tmp_path)
    assert contents(tmp_path) == {"a": "new", "b/x": "new", "other": "old"}


FILE = "with disk.replacing('a') as f:\n    f.write(b'x')\n    f.flush()\n"


@pytest.mark.parametrize("code", [WRITE + NEW, FILE])
def test_what_a_killed_writer_leaves_is_gone_with_the_next_write(tmp_path: Path, code: str) -> None:
    disk.write_text(tmp_path / "a", "old")
    die(f"{code}    os._exit(9)", tmp_path)
    assert len(names(tmp_path)) > 1
    assert contents(tmp_path)["a"] == "old"
    claims._tidied.clear()
    disk.write_text(tmp_path / "z", "another")
    assert names(tmp_path) == {"a", "z"}


def test_what_living_writers_write_is_left_alone(tmp_path: Path) -> None:
    """Their own and another process's."""
    code = (
        "import sys\nfrom dreambooth_core import disk\n"
        "with disk.replacing('a') as f:\n"
        "    print('writing', flush=True)\n    sys.stdin.readline()\n    f.write(b'theirs')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == "writing\n"
        with disk.replacing(tmp_path / "b") as file, disk.exchanging(tmp_path, ["c"]) as part:
            file.write(b"ours")
            disk.write_text(part / "c", "ours")
            disk.tidy(tmp_path)
        other.stdin.write("\n")
    assert contents(tmp_path) == {"a": "theirs", "b": "ours", "c": "ours"}


def test_a_lock_that_was_taken_for_a_dead_ones_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody clears up between the lock's making and its locking."""
    true: Callable[[int], bool | None] = claims._take
    taken = 0

    def take(handle: int) -> bool | None:
        nonlocal taken
        taken += 1
        if taken == 1:
            disk.tidy(tmp_path)
        return true(handle)

    monkeypatch.setattr(claims, "_take", take)
    disk.write_text(tmp_path / "a", "x")
    assert taken == 3
    assert names(tmp_path) == {"a"}


def test_where_nothing_can_be_locked_nothing_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die("with disk.replacing('a') as f:\n    os._exit(9)", tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr(claims, "_take", lambda handle: None)
    disk.write_text(tmp_path / "b", "x")
    assert names(tmp_path) == before | {"b"}


def test_a_folder_is_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_text(tmp_path / "model" / "unet" / "a", "x")
    disk.write_text(tmp_path / "file", "x")

    def fail(_: Path) -> None:
        raise OSError(errno.EACCES, "held open")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "rename", lambda source, target: fail(source))
        assert not disk.remove(tmp_path / "model")
        assert (tmp_path / "model" / "unet" / "a").exists()
    with monkeypatch.context() as patch:
        patch.setattr(claims, "discard", fail)
        assert disk.remove(tmp_path / "model")
        assert not (tmp_path / "model").exists()
    assert disk.remove(tmp_path / "file")
    disk.tidy(tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("link", [False, True])
def test_a_copy_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool) -> None:
    disk.write_text(tmp_path / "a", "new")
    disk.write_text(tmp_path / "b", "old")
    disk.copy_file(tmp_path / "a", tmp_path / "b", link=link)
    disk.write_text(tmp_path / "a", "newer")
    assert contents(tmp_path) == {"a": "newer", "b": "new"}

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    disk.copy_file(tmp_path / "a", tmp_path / "b", link=link)
    with pytest.raises(SaveFailed, match="No such file"):
        disk.copy_file(tmp_path / "none", tmp_path / "b", link=link)
    assert contents(tmp_path) == {"a": "newer", "b": "newer"}


def test_windows_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []
    (tmp_path / "a").write_text("x")

    def replace(source: Path, target: Path) -> None:
        if len(tries) < 2:
            raise PermissionError(errno.EACCES, "a scanner reads it")
        source.rename(target)

    monkeypatch.setattr(system.os, "replace", replace)
    with pytest.raises(PermissionError):
        system.rename(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(system.time, "sleep", tries.append)
    monkeypatch.setattr(system.os, "name", "nt")
    system.rename(tmp_path / "a", tmp_path / "b")
    monkeypatch.undo()
    assert tries == [0.1, 0.3]
    assert names(tmp_path) == {"b"}
