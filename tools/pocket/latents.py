"""Draws the training pictures, encodes them once, and serves latents from the cache.

For each size two files hold the posterior's mean and deviation [n, 4, size/8, size/8] in fp16; a
step samples a fresh latent from them, as the autoencoder would give it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .autoencoder import SCALING_FACTOR, fold_statistics, shrink, to_tensor
from .painting import paint
from .training import save_json
from .world import scene_number

COUNTS = {64: 8000, 128: 14000}
CHUNK = 50


def pictures(indices: range, side: int) -> torch.Tensor:
    """The training pictures with these numbers [n, 3, side, side] in -1..1."""
    drawn = [paint(scene_number(i), 128) for i in indices]
    return to_tensor(drawn if side == 128 else [shrink(p, side) for p in drawn])


@torch.no_grad()
def measure_statistics(model: AutoencoderKL, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [4] of sampled raw latents over both sizes."""
    values = []
    for side in (64, 128):
        generator = torch.Generator().manual_seed(side)
        for first in range(0, count, CHUNK):
            posterior = model.encode(pictures(range(first, first + CHUNK), side)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            sample = posterior.mean + posterior.std * noise
            values.append(sample.permute(1, 0, 2, 3).flatten(1)[:, :: side // 64 * side // 64])
    joined = torch.cat(values, dim=1)
    return joined.mean(1), joined.std(1)


def normalise(model: AutoencoderKL) -> None:
    """Folds the measured statistics into the autoencoder."""
    fold_statistics(model, *measure_statistics(model))


def _paths(folder: Path, side: int) -> tuple[Path, Path]:
    return folder / "latents" / f"mean-{side}.npy", folder / "latents" / f"std-{side}.npy"


@torch.no_grad()
def encode(model: AutoencoderKL, folder: Path, side: int) -> None:
    """Fills the cache of one size; does nothing when it is there."""
    paths = _paths(folder, side)
    if all(path.exists() for path in paths):
        return
    wall, cpu = time.monotonic(), time.process_time()
    count, cells = COUNTS[side], side // 8
    means = np.empty((count, 4, cells, cells), np.float16)
    stds = np.empty_like(means)
    for first in range(0, count, CHUNK):
        batch = pictures(range(first, first + CHUNK), side)
        posterior = model.encode(batch.contiguous(memory_format=torch.channels_last)).latent_dist
        means[first : first + CHUNK] = (posterior.mean * SCALING_FACTOR).numpy()
        stds[first : first + CHUNK] = (posterior.std * SCALING_FACTOR).numpy()
        if first % 2000 == 0:
            print(f"latents {side}: {first}/{count}", flush=True)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, values in zip(paths, (means, stds), strict=True):
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, values)
        os.replace(temporary, path)
    _note_seconds(folder, time.monotonic() - wall, time.process_time() - cpu)


def _note_seconds(folder: Path, wall: float, cpu: float) -> None:
    """Adds to the stage's record, as ``training.Run`` keeps one."""
    path = folder / "latents" / "state.json"
    known = {"cpu_seconds": 0, "wall_seconds": 0}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    known["wall_seconds"] += round(wall)
    known["cpu_seconds"] += round(cpu)
    save_json(known, path)


class Latents:
    """The cached latents of one size; item i belongs to ``scene_number(i)``."""

    def __init__(self, folder: Path, side: int) -> None:
        mean, std = _paths(folder, side)
        self.means = torch.from_numpy(np.load(mean))
        self.stds = torch.from_numpy(np.load(std))

    def __len__(self) -> int:
        return len(self.means)

    def sample(self, indices: list[int], generator: torch.Generator) -> torch.Tensor:
        """Scaled latents [n, 4, h, w] of these pictures, drawn from their posteriors."""
        mean, std = self.means[indices].float(), self.stds[indices].float()
        return mean + std * torch.randn(mean.shape, generator=generator)
