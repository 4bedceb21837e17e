"""``dreambooth runs``, from listing to following, on runs that were really written."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from dreambooth_core.commands import runs as command_module
from dreambooth_core.commands.main import main
from dreambooth_core.jobs import VERBS, RunFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def dog(root: Path) -> RunFolder:
    folder = RunFolder.create(root, "dog")
    folder.events.write("started", step=0, steps=10)
    folder.events.write("progress", step=4, steps=10, loss=0.25, lr=1e-4, seconds_per_step=0.1)
    return folder


def finish(folder: RunFolder) -> None:
    (folder.path / "dog.safetensors").write_text("")
    folder.events.write("saved", path="dog.safetensors", step=10, result=True)
    folder.events.write("finished", outcome="done", results=["dog.safetensors"])


def test_the_list(root: Path, dog: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--runs", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "dog" in shown and "lost" in shown and "4 of 10" in shown
    assert main(["runs", "--runs", str(root), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["state"], listed["loss"]) == ("dog", "lost", 0.25)
    assert main(["runs", "list", "--runs", str(root / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_one_run(root: Path, dog: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    finish(dog)
    assert main(["runs", "--runs", str(root), "show", "dog"]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown and "dog.safetensors" in shown
    assert main(["runs", "show", "dog", "--runs", str(root), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["results"], summary["receipt"]) == (["dog.safetensors"], {})


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_reaches_the_run(
    root: Path, dog: RunFolder, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["runs", verb.replace("_", "-"), "dog", "--runs", str(root)]
    assert main(arguments) == 2
    assert "the run is lost" in capsys.readouterr().err
    with dog.lock:
        control = dog.control
        assert main(arguments) == 0
        assert control.poll() == [verb]
        assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1]) == {"run": "dog", "verb": verb}


def test_an_unknown_run_is_one_line(
    root: Path, dog: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "stop", "dgo", "--runs", str(root)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "Did you mean dog?" in shown


def test_follow_watches_until_the_end(
    root: Path, dog: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = dog.lock
    lock.acquire()

    def end() -> None:
        time.sleep(0.3)
        dog.events.write("warning", message="careful")
        finish(dog)
        lock.release()

    thread = threading.Thread(target=end)
    thread.start()
    assert main(["runs", "follow", "dog", "--runs", str(root)]) == 0
    thread.join()
    shown = capsys.readouterr().err
    assert "careful" in shown and "finished" in shown and "dog.safetensors" in shown
    assert main(["runs", "follow", "dog", "--runs", str(root), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == [
        "started",
        "progress",
        "warning",
        "saved",
        "finished",
    ]


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (("finished", {"outcome": "stopped", "message": "as asked"}), 130),
        (("error", {"message": "no memory"}), 1),
        (None, 1),
    ],
)
def test_the_code_of_follow_is_that_of_the_run(
    root: Path,
    dog: RunFolder,
    ending: tuple[str, dict[str, str]] | None,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if ending is not None:
        dog.events.write(ending[0], **ending[1])
    assert main(["runs", "follow", "dog", "--runs", str(root)]) == code
    expected = ending[1]["message"] if ending is not None else "lost"
    assert expected in capsys.readouterr().err


def test_leaving_is_not_stopping(
    root: Path,
    dog: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave(_: RunFolder) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module, "_watch", leave)
    assert main(["runs", "follow", "dog", "--runs", str(root)]) == 0
    assert "dog is running" in capsys.readouterr().err
    assert not dog.control_file.exists()


def test_kill_says_how_it_ended(
    root: Path, dog: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "kill", "dog", "--runs", str(root)]) == 0
    assert capsys.readouterr().out == "dog: not running\n"
    lock = dog.lock
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    assert main(["runs", "kill", "dog", "--runs", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "stopped"
    assert dog.control.poll() == ["stop"]
