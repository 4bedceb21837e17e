"""Puts this pack, pocket and pictures into a ComfyUI that tests may write to."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from torch import Tensor

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.families.stable_diffusion.read import read_model
from dreambooth_core.families.stable_diffusion.single_write import write_single_file

ROOT = Path(__file__).parents[2]
STAR = ROOT / "dreambooth_core" / "assets" / "demo" / "star"
CHECKPOINT = "pocket.safetensors"


def install(host: Path) -> None:
    """The pack as git has it, the test-only family, the checkpoint and five pictures."""
    packs = host / "custom_nodes"
    ours = packs / "dreambooth"
    if ours.is_symlink():
        ours.unlink()
    shutil.rmtree(ours, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (ours / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, ours / name)
    family = Path(__file__).with_name("pocket_family")
    shutil.copytree(family, packs / family.name, dirs_exist_ok=True)
    shutil.copytree(STAR, host / "input" / "star", dirs_exist_ok=True)
    checkpoint = host / "models" / "checkpoints" / CHECKPOINT
    if not checkpoint.is_file():
        write_single_file(read_model(embedded_folder()), checkpoint, yaml="never")


@cache
def pocket_states() -> dict[str, dict[str, Tensor]]:
    """pocket's UNet and text encoder, in diffusers' names."""
    parts = read_model(embedded_folder(), need_vae=False)
    return {n: dict(parts.components[n].tensors) for n in ("unet", "text_encoder")}
