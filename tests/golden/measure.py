"""Trains a case and says what came of it: the loss of each step and a hash of what was saved."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from helpers.families import KINDS
from helpers.reduced_models import reduced_parts
from helpers.runs import bare, config_for, folder_for, losses
from helpers.tiny import COLOURS
from PIL import Image, ImageDraw

from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder
from dreambooth_core.trainer.run import run
from tests.golden.cases import Case

STEPS = 4
SIZES = ((96, 64), (64, 96), (80, 80))
PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes", "pillow", "numpy")


@dataclass(frozen=True)
class Measured:
    """What a case must come to again."""

    losses: list[str]
    """Of each step, as :meth:`float.hex` writes it."""
    results: dict[str, str]
    """SHA-256 of the tensors in each saved file (names, dtypes, shapes, bytes), by its name."""

    def as_dict(self) -> dict[str, Any]:
        """For the golden file."""
        return asdict(self)


def build() -> dict[str, str]:
    """What numbers may depend on besides this code."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        **versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


class Bench:
    """A folder with everything that the cases start from, each thing made when it is wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = cache(lambda kind: lively_base(kind, folder / "bases" / kind))
        self.images = _draw(folder / "images")
        self.class_images = _draw(folder / "class", background="grey")

    def measure(self, case: Case) -> Measured:
        """Trains the case anew."""
        torch.manual_seed(0)
        changes = {
            "data__crop": "center",
            "data__captions": "prompt",
            "run__seed": 7,
            "run__steps": STEPS,
            "optim__learning_rate": 1e-2,
            **case.changes,
        }
        name = "".join(c if c.isalnum() else "-" for c in case.name).strip("-")
        root = self.folder / "runs"
        config = config_for(self.base(case.base), self.images, root, run__name=name, **changes)
        if config.prior.enabled:
            config.concepts[0].class_images = self.class_images.as_posix()
        folder = folder_for(config)
        with bare():  # and nothing is kept of the case before, which other kernels may have encoded
            run(folder)
        return Measured(
            [loss.hex() for loss in losses(folder).values()],
            {path.name: _hash(path) for path in _saved(folder)},
        )


def lively_base(kind: str, folder: Path) -> Path:
    """A reduced base whose prediction hangs on all that it is given.

    Weights as small as those of other tests' bases predict next to nothing: whatever a text
    encoder said would be lost in the rounding of the loss.
    """
    family, channels, prediction = KINDS[kind]
    parts = reduced_parts(family, in_channels=channels, prediction_type=prediction)
    for component in parts.components.values():
        for name, tensor in component.tensors.items():
            if tensor.ndim > 1:
                tensor.mul_(20 / tensor[0].numel() ** 0.5 if "embedding" not in name else 10.0)
            else:
                tensor.mul_(2.0).add_(1.0 if name.endswith("weight") else 0.0)
    write_folder(parts, folder)
    return folder


def _draw(folder: Path, *, background: str = "lightgrey") -> Path:
    """A ball in each of three shapes, masked by its alpha channel, with tags in a file."""
    folder.mkdir(parents=True)
    for index, (width, height) in enumerate(SIZES):
        image = Image.new("RGB", (width, height), background)
        mask = Image.new("L", (width, height), 40)
        side = 20 + 4 * index
        box = [width // 2 - side, height // 2 - side, width // 2 + side, height // 2 + side]
        ImageDraw.Draw(image).ellipse(box, fill=COLOURS[index])
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        image.putalpha(mask)
        image.save(folder / f"ball-{index}.png")
        tags = f"sks ball, {COLOURS[index]}, round, on grey"
        (folder / f"ball-{index}.txt").write_text(tags, encoding="utf-8")
    return folder


def _saved(folder: RunFolder) -> list[Path]:
    """The results' files; a whole model's folder holds the same as its file."""
    return sorted(path for path in folder.path.glob("*.safetensors"))


def _hash(path: Path) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(read_tensors(path).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
