"""Start-up seconds, CPU seconds a step and peak memory of a LoRA run on a tiny model.

    python benchmarks/train_lora.py
    python benchmarks/train_lora.py --peer path/to/train_dreambooth_lora.py

With ``--peer`` a script that takes the flags of diffusers' ``train_dreambooth_lora.py`` is run on
the same model, pictures, rank, batch and steps, in turn with ours. Each is run with two numbers of
steps: the difference gives the cost of a step, the rest is start-up. One thread; CPU seconds, not
wall seconds, because other programs on the machine do not change those.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEW, MANY = 10, 60
"""Numbers of steps whose difference is the cost of a step."""


@dataclass(frozen=True)
class Usage:
    """What one process cost."""

    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Result:
    """Medians over the repetitions."""

    startup_seconds: float
    seconds_per_step: float
    peak_mb: float


def measured(command: list[str]) -> Usage:
    """Runs a command and returns what it used, as the operating system counts it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{errors[-3000:]}")
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def ours(work: Path) -> Callable[[int], list[str]]:
    """Our command for a number of steps."""

    def command(steps: int) -> list[str]:
        values = {
            "base.model": work / "base",
            "concepts[0].images": work / "pictures",
            "concepts[0].instance_prompt": "a photo of sks ball",
            "data.resolution": 64,
            "data.crop": "center",
            "method.rank": 4,
            "method.alpha": 4,
            "optim.learning_rate": 1e-4,
            "run.steps": steps,
            "run.batch_size": 1,
            "run.output": work / "runs",
        }
        pairs = [f"{key}={value}" for key, value in values.items()]
        return [sys.executable, "-m", "dreambooth_core", "train", *pairs, "--json"]

    return command


def peer(script: Path, work: Path) -> Callable[[int], list[str]]:
    """The peer's command for a number of steps."""

    def command(steps: int) -> list[str]:
        flags = {
            "pretrained_model_name_or_path": work / "base",
            "instance_data_dir": work / "pictures",
            "instance_prompt": "a photo of sks ball",
            "output_dir": work / "peer",
            "resolution": 64,
            "train_batch_size": 1,
            "max_train_steps": steps,
            "learning_rate": 1e-4,
            "rank": 4,
            "lr_warmup_steps": 0,
            "checkpointing_steps": 10_000,
            "seed": 0,
        }
        pairs = [f"--{key}={value}" for key, value in flags.items()]
        return [sys.executable, str(script), *pairs]

    return command


def compare(commands: dict[str, Callable[[int], list[str]]], rounds: int) -> dict[str, Result]:
    """Runs all in turn, ``rounds`` times."""
    found: dict[str, list[Result]] = {name: [] for name in commands}
    for command in commands.values():
        measured(command(FEW))  # files of the libraries come into the system's cache
    for _ in range(rounds):
        for name, command in commands.items():
            few, many = measured(command(FEW)), measured(command(MANY))
            step = (many.cpu_seconds - few.cpu_seconds) / (MANY - FEW)
            found[name].append(Result(few.cpu_seconds - FEW * step, step, many.peak_mb))
    return {
        name: Result(
            statistics.median(r.startup_seconds for r in results),
            statistics.median(r.seconds_per_step for r in results),
            statistics.median(r.peak_mb for r in results),
        )
        for name, results in found.items()
    }


def make_model(work: Path) -> None:
    """A tiny SD1 folder with a tokenizer, and three pictures."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from helpers.tiny import draw_pictures, tiny_sd1

    from dreambooth_core.formats.tokenizers import load_tokenizers

    tiny_sd1(work / "base")
    load_tokenizers("sd1")[0].save_pretrained(work / "base" / "tokenizer")
    draw_pictures(work / "pictures")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a script with train_dreambooth_lora.py's flags")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_model(work)
        commands = {"dreambooth": ours(work)}
        if args.peer:
            commands[args.peer.name] = peer(args.peer, work)
        results = compare(commands, args.rounds)
    if args.json:
        print(json.dumps({name: vars(result) for name, result in results.items()}, indent=2))
        return
    print("| | start-up, CPU s | CPU s a step | peak MB |\n|---|---|---|---|")
    for name, result in results.items():
        print(
            f"| {name} | {result.startup_seconds:.2f} | {result.seconds_per_step:.4f} "
            f"| {result.peak_mb:.0f} |"
        )


if __name__ == "__main__":
    main()
