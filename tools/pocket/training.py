"""What every training stage shares: schedules, EMA, seeds by step, checkpoints, progress lines."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    flat = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(flat, temporary, metadata={"format": "pt"})
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def save_json(value: object, path: Path) -> None:
    """Writes JSON under a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def rate_at(step: int, total: int, peak: float, floor: float = 0.02, warm: int = 150) -> float:
    """Linear warm-up times a half cosine from ``peak`` to ``floor`` times it."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / total))
    return peak * cosine * min(1.0, (step + 1) / warm)


class Average:
    """Exponential moving average of a module's weights; the decay grows towards ``decay``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """One step of the average."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.weights[name].lerp_(value, 1 - keep)


class Run:
    """A resumable training loop: ``for step in run.steps(): ...; run.optimise(loss)``.

    Saves weights, optimiser and average every ``every`` steps, so a killed run continues; because
    each step draws from ``run.random(step)``, it continues as if nothing had happened.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        folder: Path,
        total: int,
        rate: float,
        *,
        decay: float = 0.999,
        every: int = 500,
        weight_decay: float = 0.01,
        clip: float = 1.0,
        floor: float = 0.02,
    ) -> None:
        self.name, self.module, self.total, self.peak = name, module, total, rate
        self.folder, self.every, self.clip = folder / name, every, clip
        self.floor = floor
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        self.average = Average(module, decay)
        self.start, self.cpu, self.wall = 0, 0.0, 0.0
        self.losses: list[float] = []
        self._resume()

    def random(self, step: int) -> tuple[random.Random, torch.Generator]:
        """The step's own sources of chance."""
        seed = random.Random(f"{self.name}-{step}").getrandbits(62)
        return random.Random(seed), torch.Generator().manual_seed(seed)

    def steps(self) -> Iterator[int]:
        """The steps still to do; reports progress and saves on the way."""
        cpu, wall, begun = time.process_time(), time.monotonic(), time.monotonic()
        for step in range(self.start, self.total):
            yield step
            done = step + 1
            if done % 50 == 0:
                self._report(done, (time.monotonic() - begun) / (done - self.start))
            if done % self.every == 0 or done == self.total:
                self.cpu += time.process_time() - cpu
                self.wall += time.monotonic() - wall
                cpu, wall = time.process_time(), time.monotonic()
                self._save(done)

    def optimise(self, step: int, loss: torch.Tensor) -> None:
        """Backward, clip, AdamW step, average."""
        rate = rate_at(step, self.total, self.peak, self.floor)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.average.update(self.module, step)
        self.losses.append(float(loss.detach()))

    def use_average(self) -> None:
        """Loads the averaged weights into the module."""
        self.module.load_state_dict(self.average.weights)

    def _report(self, done: int, seconds: float) -> None:
        recent = self.losses[-50:]
        left = seconds * (self.total - done) / 60
        print(
            f"{self.name}: {done}/{self.total}  loss {sum(recent) / len(recent):.4f}  "
            f"{seconds:.3f} s a step  {left:.1f} min left",
            flush=True,
        )

    def _save(self, done: int) -> None:
        save_weights(self.module.state_dict(), self.folder / "weights.safetensors")
        save_weights(self.average.weights, self.folder / "average.safetensors")
        state = {}
        for index, parameter in enumerate(self.parameters):
            for key, value in self.optimiser.state[parameter].items():
                state[f"{index}.{key}"] = value
        save_weights(state, self.folder / "optimiser.safetensors")
        facts = {"step": done, "cpu_seconds": round(self.cpu), "wall_seconds": round(self.wall)}
        save_json(facts, self.folder / "state.json")

    def _resume(self) -> None:
        facts = self.folder / "state.json"
        if not facts.exists():
            return
        known = json.loads(facts.read_text(encoding="utf-8"))
        self.module.load_state_dict(load_file(self.folder / "weights.safetensors"))
        self.average.weights = load_file(self.folder / "average.safetensors")
        state = load_file(self.folder / "optimiser.safetensors")
        for index, parameter in enumerate(self.parameters):
            self.optimiser.state[parameter] = {
                key: state[f"{index}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.start, self.cpu = known["step"], known["cpu_seconds"]
        self.wall = known["wall_seconds"]
