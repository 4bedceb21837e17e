"""Tiny bases, a few pictures, and command lines that train on them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.reduced_models import reduced_parts
from helpers.runs import bare
from helpers.tiny import draw_pictures, tiny_sd1

from dreambooth_core.commands.main import main
from dreambooth_core.families.stable_diffusion.folder import write_folder

Typed = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 as a whole diffusers folder, tokenizer and all."""
    from dreambooth_core.families.stable_diffusion.folder import read_folder

    bare = tiny_sd1(tmp_path_factory.mktemp("bare"))
    whole = tmp_path_factory.mktemp("base")
    write_folder(read_folder(bare), whole)
    return whole


@pytest.fixture(scope="session")
def xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reduced SDXL as a whole diffusers folder."""
    folder = tmp_path_factory.mktemp("xl")
    write_folder(reduced_parts("sdxl"), folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn pictures of a ball."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def typed(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """Types a short training command and returns its output folder; a run without estimate, curve
    and proof, but for ``whole``."""

    def run(
        script: str, *flags: str, out: Path | None = None, whole: bool = False, **given: Any
    ) -> Path:
        folder = out or tmp_path_factory.mktemp("runs") / "out"
        values = {
            "pretrained_model_name_or_path": base,
            "instance_data_dir": pictures,
            "instance_prompt": "a photo of sks ball",
            "output_dir": folder,
            "resolution": 64,
            "max_train_steps": 4,
            "train_batch_size": 1,
            "learning_rate": 1e-2,
            "seed": 1,
            **given,
        }
        line = [f"--{name}={value}" for name, value in values.items() if value is not None]
        with nullcontext() if whole else bare():
            assert main(["compat", script, "--center_crop", *line, *flags]) == 0
        return folder

    return run
