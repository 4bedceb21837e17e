"""CPU seconds and memory of training: start-up, each step, all else; ours beside a peer's.

    python -m benchmarks.train
    python -m benchmarks.train --lora-peer train_dreambooth_lora.py --full-peer train_dreambooth.py

The peers are scripts with the flags of diffusers' ``train_dreambooth_lora.py`` and
``train_dreambooth.py``. Both sides train the same model on the same pictures with the same batch,
resolution, rank, learning rate and number of steps, on one thread, without validation images and
intermediate checkpoints, and in turn, each with what its own instructions install: the peers need
torchvision, which our environment does not have (``--peer-packages``). CPU seconds of the whole
process are counted, not wall seconds, because other programs on the machine do not change those.

Two models: ``tiny`` (a UNet of 0.8 million weights at 8 x 8 latents), where a step is little but
overhead, and ``small`` (12.5 million at 64 x 64, that is 512 x 512 pixels), whose autoencoder costs
about half of a training step, as Stable Diffusion 1.5's does.
"""

from __future__ import annotations

import argparse
import compileall
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.stepclock import clocked

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a photo of sks ball"
OURS = "dreambooth"
RATES = {"lora": 1e-4, "full": 5e-6}


@dataclass(frozen=True)
class Model:
    """A model and how long to train it."""

    resolution: int
    steps: int


MODELS = {"tiny": Model(resolution=64, steps=205), "small": Model(resolution=512, steps=15)}


@dataclass(frozen=True)
class Result:
    """What one process cost. CPU seconds and MB."""

    startup: float
    """Until the first step is done."""
    step: float
    """Each of the later steps."""
    rest: float
    """After the last step: writing results, and for ours the proof that they load again."""
    peak_mb: float

    @property
    def besides(self) -> float:
        """All but the steps."""
        return self.startup - self.step + self.rest


def run(command: list[str], clock: Path, packages: str = "") -> Result:
    """Runs a command under the clock, on one thread, with ``packages`` in front of what Python
    finds."""
    found = clocked(command, clock, packages=packages, OMP_NUM_THREADS="1")
    rest = found.total - found.cpu[-1]
    return Result(found.cpu[0], found.cpu_step, rest, found.peak / 2**20)


def ours(work: Path, model: Model, kind: str) -> list[str]:
    """Our command."""
    values = {
        "base.model": work / "base",
        "concepts[0].images": work / "pictures",
        "concepts[0].instance_prompt": PROMPT,
        "data.resolution": model.resolution,
        "data.crop": "center",
        "method.kind": kind,
        "optim.learning_rate": RATES[kind],
        "run.steps": model.steps,
        "run.batch_size": 1,
        "run.output": work / "runs",
    }
    if kind == "lora":
        values.update({"method.rank": 4, "method.alpha": 4})
    return [
        "-m",
        "dreambooth_core",
        "train",
        *(f"{key}={value}" for key, value in values.items()),
        "--json",
    ]


def peers(script: Path, work: Path, model: Model, kind: str) -> list[str]:
    """The peer's command."""
    flags = {
        "pretrained_model_name_or_path": work / "base",
        "instance_data_dir": work / "pictures",
        "instance_prompt": PROMPT,
        "output_dir": work / "peer",
        "resolution": model.resolution,
        "train_batch_size": 1,
        "max_train_steps": model.steps,
        "learning_rate": RATES[kind],
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10_000,
        "seed": 0,
    }
    if kind == "lora":
        flags["rank"] = 4
    return [str(script), "--center_crop", *(f"--{key}={value}" for key, value in flags.items())]


def make_model(name: str, work: Path) -> None:
    """An SD1 folder with a tokenizer, and five pictures."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    # What Python compiles at a clone's first run, as pip has done with all libraries.
    compileall.compile_dir(str(ROOT / "dreambooth_core"), quiet=1)
    import torch
    from diffusers import AutoencoderKL
    from helpers.tiny import draw_pictures, tiny_sd1, tiny_unet

    from dreambooth_core.families.clip_tokenizers import load_tokenizers

    tiny_sd1(work / "base")
    load_tokenizers("sd1")[0].save_pretrained(work / "base" / "tokenizer")
    side = MODELS[name].resolution
    draw_pictures(work / "pictures", count=5, size=(side * 5 // 4, side))
    if name == "tiny":
        return
    torch.manual_seed(0)
    widths = (64, 128, 256)
    unet = tiny_unet(
        sample_size=side // 8,
        block_out_channels=widths,
        down_block_types=(*["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 2),
    )
    vae = AutoencoderKL(
        block_out_channels=(40,) * 4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=side,
    )
    unet.save_pretrained(work / "base" / "unet")
    vae.save_pretrained(work / "base" / "vae")


def compare(
    commands: dict[str, list[str]], rounds: int, work: Path, packages: str, *, warm_up: bool
) -> dict[str, list[Result]]:
    """Runs all in turn, ``rounds`` times; with ``warm_up`` after a round that is not counted, which
    brings the libraries' files into the system's cache. ``packages``: a folder that only others'
    commands see."""
    found: dict[str, list[Result]] = {name: [] for name in commands}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, command in commands.items():
            result = run(command, work / "clock.json", "" if name == OURS else packages)
            if number:
                found[name].append(result)
            for folder in ("runs", "peer"):
                shutil.rmtree(work / folder, ignore_errors=True)
    return found


def rows(found: dict[str, list[Result]]) -> Iterator[list[str]]:
    """A line for each side: median (smallest) of the rounds."""
    columns: list[tuple[Callable[[Result], float], int]] = [
        (lambda r: r.startup, 2),
        (lambda r: r.step, 4),
        (lambda r: r.rest, 2),
        (lambda r: r.besides, 2),
        (lambda r: r.peak_mb, 0),
    ]
    for name, results in found.items():
        cells = []
        for value, digits in columns:
            numbers = [value(result) for result in results]
            cells.append(f"{statistics.median(numbers):.{digits}f} ({min(numbers):.{digits}f})")
        yield [name, *cells]


HEADER = (
    "| | start-up, CPU s | CPU s a step | after the last step, CPU s | all but steps, CPU s "
    "| peak MB |\n|---|---|---|---|---|---|"
)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lora-peer", type=Path, metavar="SCRIPT")
    parser.add_argument("--full-peer", type=Path, metavar="SCRIPT")
    parser.add_argument(
        "--peer-packages",
        default="",
        metavar="FOLDER",
        help="what only the peers need, torchvision above all: our environment is made without it",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kinds", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-warm-up", action="store_true", help="the libraries' files were read lately"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    scripts = {"lora": args.lora_peer, "full": args.full_peer}
    answer: dict[str, object] = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            work, model = Path(folder), MODELS[name]
            make_model(name, work)
            for kind in args.kinds:
                commands = {OURS: ours(work, model, kind)}
                if script := scripts[kind]:
                    commands[script.name] = peers(script, work, model, kind)
                warm_up = not (answer or args.no_warm_up)
                found = compare(commands, args.rounds, work, args.peer_packages, warm_up=warm_up)
                answer[f"{name} {kind}"] = {
                    side: [asdict(result) for result in results] for side, results in found.items()
                }
                if not args.json:
                    print(f"\n{name}, {kind}: {model.steps} steps\n\n{HEADER}")
                    for row in rows(found):
                        print(f"| {' | '.join(row)} |", flush=True)
    if args.json:
        print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
