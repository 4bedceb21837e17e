"""A plugin for pytest: diffusers' tests of ``examples/dreambooth`` run ``dreambooth compat``.

Used by ``test_diffusers_examples.py``. Their files stay as they are: what launches their scripts is
ours, and their tiny pipelines of the hub are tiny ones of the same classes, made here. Nothing is
fetched.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from helpers.families import reduced_base
from helpers.flow_bases import WRITERS
from helpers.tiny import draw_pictures, tiny_sd1

from dreambooth_core.commands.main import main
from dreambooth_core.families.stable_diffusion.folder import read_folder, write_folder

HUB = "hf-internal-testing/"
IMAGES = "docs/source/en/imgs"
LAYERS = "--text_encoder_out_layers"
SIZE = "--resolution"


def _sd1(folder: Path) -> Path:
    write_folder(read_folder(tiny_sd1(folder.with_name("bare"))), folder)
    return folder


BASES: dict[str, Callable[[Path], Path]] = {
    "tiny-stable-diffusion-torch": _sd1,
    "tiny-stable-diffusion-xl-pipe": lambda folder: reduced_base("sdxl", folder, slim=True),
    "tiny-flux-pipe": WRITERS["flux"],
    "tiny-sd3-pipe": WRITERS["sd3"],
    "tiny-flux2": WRITERS["flux2_dev"],
    "tiny-flux2-klein": WRITERS["flux2_klein"],
    "tiny-hidream-i1-pipe": WRITERS["hidream"],
    "tiny-lumina2-pipe": WRITERS["lumina2"],
    "tiny-qwenimage-pipe": WRITERS["qwen_image"],
    "tiny-sana-pipe": WRITERS["sana"],
}
"""Ours in place of theirs, by the name on the hub."""


class Launcher:
    """What runs a command of theirs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Path] = {}

    def local(self, word: str) -> str:
        """A word of a command with what lies on the hub, or in their repository, put here."""
        if not word:  # the instance prompt of some: here nothing would call the subject
            return "photo"
        flag, equals, value = word.rpartition("=")
        if value == IMAGES:
            value = str(self._once("images", lambda folder: draw_pictures(folder)))
        name = value.removeprefix(HUB)
        if name != value and name in BASES:
            value = str(self._once(name, BASES[name]))
        return f"{flag}{equals}{value}"

    def _once(self, name: str, make: Callable[[Path], Path]) -> Path:
        if name not in self.made:
            self.made[name] = make(self.root / name / "whole")
        return self.made[name]

    def __call__(self, command: list[str], return_stdout: bool = False) -> None:
        script, *words = command
        if LAYERS in words:  # their tiny Mistral has one; here the pipeline says which are read
            at = words.index(LAYERS)
            words = words[:at] + words[at + 2 :]
        line = " ".join(words).replace(f"{SIZE}=", f"{SIZE} ").replace(f"{SIZE} 32", f"{SIZE} 64")
        words = line.split(" ")  # 32 is too small to be a training, and an empty word stays one
        code = self._run(["compat", script, *map(self.local, words)])
        assert code == 0, f"exit code {code}"

    def _run(self, line: list[str]) -> int:
        """They count everything whose name has "checkpoint" in it. The run's own folder for that,
        with what a run is resumed from, is put away after it and comes back before the next."""
        words = " ".join(line).replace("=", " ").split()
        out = Path(words[words.index("--output_dir") + 1])
        kept, away = out / "checkpoints", out / ".kept"
        if away.exists():
            away.rename(kept)
        code = main(line)
        if kept.exists():
            kept.rename(away)
        return code


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Puts ours where their files import theirs from."""
    theirs = ModuleType("test_examples_utils")
    launcher = Launcher(Path(tempfile.mkdtemp(prefix="diffusers-examples-")))
    plain = DiffusionPipeline.from_pretrained

    def from_pretrained(place: object, **given: Any) -> Any:
        return plain(launcher.local(str(place)), **given)

    DiffusionPipeline.from_pretrained = from_pretrained
    vars(theirs).update(
        run_command=launcher,
        ExamplesTestsAccelerate=type("ExamplesTestsAccelerate", (), {"_launch_args": []}),
    )
    sys.modules["test_examples_utils"] = theirs
