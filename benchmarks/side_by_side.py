"""Steps of a LoRA beside diffusers' scripts, on a GPU in real sizes: ``python -m
benchmarks.side_by_side --peers diffusers/examples/dreambooth``.

Random weights, since no number in them changes the time. Both sides train the same base in bf16
with the same batch, rank, optimizer and gradient checkpointing, and what the peer can cache is
cached. The share of the chip's limit counts the floating-point operations of the trace that the
estimate of memory makes, against a large matrix product on the same chip. Without a GPU the bases
are tiny, in fp32, and only show that all of it works. Linux and macOS.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import MODELS, in_size
from benchmarks.stepclock import WARM, Clocked, clocked
from dreambooth_core.config.loading import load
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
GIB = 1024**3
PROMPT = "a photo of sks ball"


@dataclass(frozen=True)
class Contest:
    """A model, and how both sides train it."""

    script: str
    resolution: int
    batch: int
    steps: int
    checkpointing: bool = False
    caches: bool = False
    """Whether the script has ``--cache_latents``."""
    shorter: Mapping[str, int] | None = None
    """Changes of the denoiser's configuration: fewer blocks, where the real one takes too long to
    write and read."""


CONTESTS: dict[str, Contest] = {
    "SD 1.5": Contest("train_dreambooth_lora.py", 512, 8, 40),
    "SDXL": Contest("train_dreambooth_lora_sdxl.py", 1024, 4, 25, checkpointing=True),
    "Z-Image": Contest("train_dreambooth_lora_z_image.py", 1024, 2, 20, True, True),
    "Flux.1 dev": Contest(
        "train_dreambooth_lora_flux.py",
        1024,
        2,
        20,
        True,
        True,
        {"num_layers": 8, "num_single_layers": 16},
    ),
}
SHORT_TEXT = {"num_layers": 2, "num_hidden_layers": 2}
"""Text is encoded once, before the steps: two layers do."""


def make_base(name: str, folder: Path, *, real: bool) -> dict[str, Any]:
    """Writes a base with random weights; returns its networks' configurations."""
    sys.path[:0] = [str(ROOT / "tests")]
    from helpers.real_sizes import SMALL

    small = SMALL[name](folder / "small")
    parts = load_base(BaseOptions(model=str(small)))
    if real:
        configs = {part: dict(config) for part, config in MODELS[name].items()}
        configs[parts.family.denoiser].update(CONTESTS[name].shorter or {})
        for part, config in configs.items():
            if part.startswith("text"):
                config.update({k: v for k, v in SHORT_TEXT.items() if k in config})
        parts = in_size(parts, configs, torch.bfloat16)
    parts.family.write_folder(parts, folder / "base", torch.bfloat16 if real else torch.float32, {})
    return parts.configs


def settings(name: str, folder: Path, *, real: bool) -> dict[str, Any]:
    """Our configuration."""
    contest = CONTESTS[name]
    return {
        "base.model": folder / "base",
        "concepts[0].images": folder / "pictures",
        "concepts[0].instance_prompt": PROMPT,
        "data.resolution": contest.resolution if real else 64,
        "data.crop": "center",
        "method.rank": 16,
        "method.alpha": 16,
        "optim.learning_rate": 1e-4,
        "memory.gradient_checkpointing": contest.checkpointing,
        "run.mixed_precision": "bf16" if real else "no",
        "run.batch_size": contest.batch if real else 1,
        "run.steps": contest.steps if real else WARM + 5,
        "run.output": folder / "runs",
        "save.at_end": False,
        "log.every_steps": 50,
    }


def ours(values: Mapping[str, Any]) -> list[str]:
    """Our command."""
    given = [f"{key}={value}" for key, value in values.items()]
    return ["-m", "dreambooth_core", "train", *given, "--json"]


def theirs(script: Path, values: Mapping[str, Any], contest: Contest, folder: Path) -> list[str]:
    """The peer's command for the same."""
    flags = {
        "pretrained_model_name_or_path": folder / "base",
        "instance_data_dir": folder / "pictures",
        "instance_prompt": PROMPT,
        "output_dir": folder / "peer",
        "resolution": values["data.resolution"],
        "train_batch_size": values["run.batch_size"],
        "max_train_steps": values["run.steps"],
        "mixed_precision": values["run.mixed_precision"],
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0,
        "rank": 16,
        "seed": 0,
        "checkpointing_steps": 10_000,
    }
    switches = ["center_crop"]
    switches += ["gradient_checkpointing"] if contest.checkpointing else []
    switches += ["cache_latents"] if contest.caches else []
    given = [f"--{key}={value}" for key, value in flags.items()]
    return [str(script), *(f"--{switch}" for switch in switches), *given]


def limit() -> float:
    """Floating-point operations a second of a large product in bf16."""
    side, times = 8192, 20
    one = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        one @ one
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        one @ one
    torch.cuda.synchronize()
    return 2 * side**3 * times / (time.perf_counter() - began)


def row(name: str, script: Path | None, most: float | None) -> str:
    """One line of the table."""
    contest, real = CONTESTS[name], most is not None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        configs = make_base(name, folder, real=real)
        from helpers.tiny import draw_pictures

        values = settings(name, folder, real=real)
        side = values["data.resolution"]
        draw_pictures(folder / "pictures", count=5, size=(side * 5 // 4, side))
        config = load(TrainConfig, overrides=[f"{k}={v}" for k, v in values.items()])
        planner = Planner(config, configs, device="cuda" if real else "cpu")
        passes = 2 + contest.checkpointing
        operations = planner.base.estimator.trace.operations * passes
        mine = clocked(ours(values), folder / "clock.json")
        peer: Clocked | None = None
        if script is not None:
            command = theirs(script, values, contest, folder)
            peer = clocked(command, folder / "clock.json")
    cells = [name, side, values["run.batch_size"], f"{1 / mine.seconds:.2f}"]
    cells += [f"{1 / peer.seconds:.2f}", f"{peer.seconds / mine.seconds:.2f}"] if peer else ["", ""]
    cells += [f"{mine.peak / GIB:.1f}", f"{peer.peak / GIB:.1f}" if peer else ""]
    cells += [f"{planner.needs().peak / GIB:.1f}"]
    cells += [f"{operations / mine.seconds / most:.0%}" if most else ""]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Prints the table, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *CONTESTS], default=list(CONTESTS))
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="diffusers' scripts")
    args = parser.parse_args()
    most = limit() if torch.cuda.is_available() else None
    where = torch.cuda.get_device_name() if most else "a CPU, with tiny bases"
    limits = f", {most / 1e12:.0f}·10¹² operations a second in bf16" if most else ""
    print(f"On {where}{limits}.\n")
    named = "it/s | peer's it/s | times | peak, GiB | peer's | estimate | of the limit"
    print(f"| model | px | batch | {named} |")
    print("|" + " --- |" * 10)
    for name in args.names:
        script = args.peers / CONTESTS[name].script if args.peers else None
        print(row(name, script, most), flush=True)


if __name__ == "__main__":
    main()
