"""The warm process: real commands, and a stand-in for them where waiting and dying matter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from dreambooth_core.errors import DreamBoothError, Stopped, UserError
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.hosting.warm import NO_GPU, Helper, shared
from tests.helpers.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]

STAND_IN = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
from dreambooth_core import warm

def run(argv):
    what = argv[0]
    print("working on " + what, file=sys.stderr)
    if what == "wait":
        while True:
            time.sleep(0.005)
    elif what == "deaf":
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    elif what == "die":
        os.write(2, b"Fatal: the sky fell\\n")
        os._exit(3)
    elif what == "crash":
        raise ZeroDivisionError("division by zero")
    elif what == "noise":
        os.system("echo noise from a library")
        sys.stdin.read()
    elif what == "list":
        print("[1, 2]")
        return 0
    print('{{"pid": %d, "gpu": "%s"}}' % (os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]))
    return 0

warm._commands = run
warm.main(sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A warm process whose commands are stand-ins."""
    path = tmp_path / "stand_in.py"
    path.write_text(textwrap.dedent(STAND_IN).format(root=str(ROOT)), encoding="utf-8")
    return path


@pytest.fixture
def helper(script: Path) -> Iterator[Helper]:
    """A helper on that process."""
    one = Helper(ROOT, arguments=[str(script)])
    yield one
    one.close()


def write_lora(path: Path, seed: int) -> Path:
    """A rank-2 adapter of one module."""
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    write_tensors(
        path,
        {
            f"{name}.lora_down.weight": torch.randn(2, 32, generator=generator),
            f"{name}.lora_up.weight": torch.randn(32, 2, generator=generator),
            f"{name}.alpha": torch.tensor(1.0),
        },
        {},
    )
    return path


def test_real_commands(tmp_path: Path) -> None:
    a, b = write_lora(tmp_path / "a.safetensors", 0), write_lora(tmp_path / "b.safetensors", 1)
    helper = Helper(ROOT)
    try:
        out = tmp_path / "ab.safetensors"
        report = helper.run("merge", f"{a}:0.7", f"{b}:0.4", "--out", out)
        assert report["method"] == "cat"
        assert report["ranks"] == [4]
        (name,) = read_adapter(out).modules
        mixed, one, two = (read_adapter(path).modules[name].delta(None) for path in (out, a, b))
        assert torch.allclose(mixed, 0.7 * one + 0.4 * two, atol=1e-6)

        first = helper.pid
        took = []
        for weight in (0.1, 0.2, 0.3):
            # Its own seconds, not those of what else the machine does.
            before = sum(psutil.Process(first).cpu_times()[:2])
            helper.run("merge", f"{a}:{weight}", f"{b}:0.2", "--out", out)
            took.append(sum(psutil.Process(first).cpu_times()[:2]) - before)
        assert min(took) < 1.0, took
        assert helper.pid == first

        with pytest.raises(UserError, match="no such file"):
            helper.run("inspect", tmp_path / "none.safetensors")
        with pytest.raises(UserError, match="unrecognized arguments: --nonsense"):
            helper.run("inspect", a, "--nonsense")
        assert helper.pid == first
    finally:
        helper.close()
    assert helper.pid is None


def test_progress_and_no_gpu(helper: Helper) -> None:
    told: list[dict[str, str]] = []
    answer = helper.run("work", progress=told.append)
    assert told == [{"message": "working on work"}]
    assert answer == {"pid": helper.pid, "gpu": "-1"}
    assert "CUDA_VISIBLE_DEVICES" in NO_GPU
    assert helper.run("list") == {"items": [1, 2]}


def test_a_helper_for_the_gpu_sees_it(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    helper = Helper(ROOT, arguments=[str(script)], gpu=True)
    try:
        assert helper.run("work")["gpu"] == "0"
    finally:
        helper.close()


def test_prints_of_libraries_stay_out_of_the_answers(helper: Helper) -> None:
    assert helper.run("noise")["pid"] == helper.pid


def test_cancel_by_asking(helper: Helper) -> None:
    pid = helper.run("work")["pid"]
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        helper.run("wait", cancelled=lambda: next(asked, True))
    assert helper.run("work")["pid"] == pid


def test_cancel_by_what_the_host_raises(helper: Helper) -> None:
    class Interrupted(Exception):
        pass

    def look() -> bool:
        raise Interrupted

    pid = helper.run("work")["pid"]
    with pytest.raises(Interrupted):
        helper.run("wait", cancelled=look)
    assert helper.run("work")["pid"] == pid


def test_cancel_of_the_deaf_ends_the_process(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth_core.hosting.warm.GRACE", 0.3)
    pid = helper.run("work")["pid"]
    with pytest.raises(Stopped):
        helper.run("deaf", cancelled=lambda: True)
    assert helper.pid is None
    assert helper.run("work")["pid"] != pid


def test_death_is_told_and_mended(helper: Helper) -> None:
    with pytest.raises(DreamBoothError, match="ended unexpectedly: Fatal: the sky fell"):
        helper.run("die")
    with pytest.raises(DreamBoothError, match="unexpected ZeroDivisionError"):
        helper.run("crash")
    assert helper.run("work")["pid"] == helper.pid


def test_leaves_when_idle_and_comes_back(script: Path) -> None:
    helper = Helper(ROOT, idle=0.2, arguments=[str(script)])
    pid = helper.run("work")["pid"]
    until(lambda: helper.pid is None)
    assert helper.run("work")["pid"] != pid
    helper.close()


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_leaves_with_its_parent(script: Path, what: str) -> None:
    """The pipe closes when the parent is killed, whatever the process is doing."""
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        if what == "busy":
            process.stdin.write(b'{"id": 1, "argv": ["wait"]}\n')
            process.stdin.flush()
            assert b"accepted" in process.stdout.readline()
        process.stdin.close()
        process.wait(timeout=PATIENCE)


def test_threads_take_turns(helper: Helper) -> None:
    answers: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(helper.run("work"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [{"pid": helper.pid, "gpu": "-1"}] * 4


def test_no_environment_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENV", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"install\.py"):
        Helper(ROOT).run("inspect", "x")


def test_shared_is_one_for_each_root(tmp_path: Path) -> None:
    assert shared() is shared(ROOT)
    assert shared(tmp_path) is not shared()


def test_imports_no_torch() -> None:
    code = "import sys, dreambooth_core.hosting.warm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=False).returncode == 0
