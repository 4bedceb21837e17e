"""The command line itself: exit codes, one-line errors, arguments in any order."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import draw_pictures

from dreambooth_core.commands import main as command
from dreambooth_core.commands.main import COMMANDS, load, main
from dreambooth_core.config.loading import load as load_config
from dreambooth_core.jobs import status
from dreambooth_core.options import TrainConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(load(name).run)
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert COMMANDS[name].split()[0].lower() in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.steps=3", "--json", "run.seed=4"],
        ["--json", "run.steps=3", "run.seed=4"],
        ["run.steps=3", "run.seed=4", "--json"],
    ],
)
def test_overrides_may_stand_anywhere(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[argparse.Namespace] = []
    module = load("train")
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(["train", *arguments]) == 0
    given = [seen[0].config, *seen[0].overrides]
    assert sorted(given) == ["run.seed=4", "run.steps=3"]
    assert seen[0].json


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "run.steps=3", "--jason"])
    assert caught.value.code == 2
    assert "--jason" in capsys.readouterr().err


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no-such-file", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from dreambooth_core.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_commands_are_named_after_their_modules() -> None:
    folder = Path(command.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in COMMANDS)


def test_train_prepare_makes_the_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = draw_pictures(tmp_path / "images", 1)
    concept = f"concepts=[{{images: '{images.as_posix()}', instance_prompt: a sks dog}}]"
    told = ["train", f"run.output={tmp_path}", "run.name=dog", "run.steps=7", concept]
    for name in ("dog", "dog-2"):
        assert main([*told, "--prepare", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"run": name, "path": str(tmp_path / name)}
    assert status(tmp_path / "dog").state == "waiting"
    assert load_config(TrainConfig, files=[tmp_path / "dog" / "config.yaml"]).run.steps == 7


@pytest.mark.parametrize(
    "arguments",
    [["runs", "--json"], ["presets"], ["check", "--values", "base.model=none"], ["estimate", "-h"]],
)
def test_what_needs_no_model_does_not_wait_for_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from dreambooth_core.commands.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
