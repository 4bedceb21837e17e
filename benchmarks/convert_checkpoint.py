"""Time and memory of converting a full-size checkpoint, both ways.

    python benchmarks/convert_checkpoint.py sd1 --folder /somewhere/with/space

Makes a checkpoint of random fp16 weights (2.1 GB for sd1, 6.9 GB for sdxl), converts it to a
diffusers folder and back in processes of their own, compares the two files bit for bit, and prints
seconds, CPU seconds and peak memory as the system counted them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dreambooth_core.families.stable_diffusion.build import empty  # noqa: E402
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler  # noqa: E402
from dreambooth_core.families.stable_diffusion.single_write import tensors_of  # noqa: E402
from dreambooth_core.families.stable_diffusion.stock import stock_configs  # noqa: E402
from dreambooth_core.formats import storage  # noqa: E402
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts  # noqa: E402


def main() -> None:
    """Makes, converts, compares, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=("sd1", "sd2", "sdxl"))
    parser.add_argument(
        "--folder", type=Path, required=True, help="where to work; needs 3x the size"
    )
    parser.add_argument("--keep", action="store_true", help="leave the files")
    args = parser.parse_args()
    folder: Path = args.folder
    source, middle, back = (
        folder / "source.safetensors",
        folder / "model",
        folder / "back.safetensors",
    )
    make(args.family, source)
    size = source.stat().st_size
    prediction = ["--prediction_type", "epsilon"] if args.family == "sd2" else []
    rows = [
        measure("file to folder", [source, middle, *prediction], size),
        measure("folder to file", [middle, back], size),
    ]
    same = equal(source, back)
    print(
        json.dumps(
            {"family": args.family, "bytes": size, "bit_exact": same, "runs": rows}, indent=2
        )
    )
    if not args.keep:
        shutil.rmtree(middle)
        for path in folder.glob("*.safetensors"):
            path.unlink()
    sys.exit(0 if same else 1)


def make(family: str, path: Path) -> None:
    """Writes random weights under the names and shapes of a full model, as others would."""
    components = {}
    for name, config in stock_configs(family).items():
        state = empty(name, config).state_dict()
        if name.startswith("text"):
            state = {k if k.startswith("text_") else f"text_model.{k}": t for k, t in state.items()}
        components[name] = Component(config, state)
    parts = ModelParts(family, components, default_scheduler(family, "epsilon"))
    tensors: dict[str, storage.TensorLike] = {}
    for name, tensor in tensors_of(parts, path, dtype=torch.float16).items():
        shape = tuple(tensor.shape)
        if tensor.dtype == torch.int64:
            tensors[name] = torch.arange(shape[-1]).reshape(shape)
        else:
            tensors[name] = storage.Lazy(shape, torch.float16, partial(noise, shape))
    storage.write_tensors(path, tensors)


def noise(shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits that are finite fp16 numbers; far faster than drawing normals."""
    bits = torch.randint(0, 0x3C00, shape, dtype=torch.int16)
    return bits.view(torch.float16)


def measure(name: str, arguments: list[object], size: int) -> dict[str, object]:
    """Runs one conversion in a process of its own."""
    command = [sys.executable, "-m", "dreambooth_core", "convert", *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{name} failed")
    peak = usage.ru_maxrss * 1024
    return {
        "what": name,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": peak,
        "peak_over_file": round(peak / size, 3),
    }


def equal(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit."""
    a, b = storage.read_tensors(first), storage.read_tensors(second)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(bits(a[k]), bits(b[k])) for k in a
    )


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Floating-point numbers as integers, so that every bit counts."""
    return tensor.contiguous().view(torch.int16) if tensor.dtype == torch.float16 else tensor


if __name__ == "__main__":
    main()
