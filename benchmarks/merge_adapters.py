"""How long merges take: two rank-16 adapters for SD 1.5, all attention and feed-forward layers.

    OMP_NUM_THREADS=1 python benchmarks/merge_adapters.py

Prints wall clock and CPU seconds per method, imports apart, reading and writing of files included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from dreambooth_core.formats.adapters.merge import Part, Plan, merge
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights, Weights
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter

LEVELS = ((320, 0), (640, 1), (1280, 2))
CONTEXT, TEXT, TEXT_LAYERS = 768, 768, 12


def modules() -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every linear layer that kohya trains in SD 1.5, by canonical name."""
    spots = [(f"down_blocks.{i}.attentions.{j}", w) for w, i in LEVELS for j in range(2)]
    spots += [("mid_block.attentions.0", 1280)]
    spots += [(f"up_blocks.{3 - i}.attentions.{j}", w) for w, i in LEVELS for j in range(3)]
    shapes: dict[str, tuple[int, int]] = {}
    for spot, width in spots:
        block = f"unet.{spot}.transformer_blocks.0"
        for attention, context in (("attn1", width), ("attn2", CONTEXT)):
            shapes[f"{block}.{attention}.to_q"] = (width, width)
            shapes[f"{block}.{attention}.to_k"] = (width, context)
            shapes[f"{block}.{attention}.to_v"] = (width, context)
            shapes[f"{block}.{attention}.to_out.0"] = (width, width)
        shapes[f"{block}.ff.net.0.proj"] = (8 * width, width)
        shapes[f"{block}.ff.net.2"] = (width, 4 * width)
        shapes[f"unet.{spot}.proj_in"] = (width, width)
        shapes[f"unet.{spot}.proj_out"] = (width, width)
    for layer in range(TEXT_LAYERS):
        block = f"text_encoder.text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{block}.self_attn.{name}"] = (TEXT, TEXT)
        shapes[f"{block}.mlp.fc1"] = (4 * TEXT, TEXT)
        shapes[f"{block}.mlp.fc2"] = (TEXT, 4 * TEXT)
    return shapes


def make(rank: int, seed: int) -> Adapter:
    """A random adapter of full size."""
    torch.manual_seed(seed)
    weights: dict[str, Weights] = {
        name: LoraWeights(torch.randn(rank, i) * 0.02, torch.randn(o, rank) * 0.02, rank / 2)
        for name, (o, i) in modules().items()
    }
    return Adapter(weights, family="sd1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=["cat", "svd", "linear", "ties"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write_adapter(make(args.rank, seed), Path(folder) / f"{seed}.safetensors")
            for seed in (1, 2)
        ]
        print(f"{len(modules())} modules, {files[0].stat().st_size / 1e6:.1f} MB each")
        for method in args.methods:
            start, busy = time.perf_counter(), time.process_time()
            parts = [Part(read_adapter(f), w) for f, w in zip(files, (0.7, 0.4), strict=True)]
            merged, report = merge(parts, Plan(method))
            write_adapter(merged, Path(folder) / "out.safetensors")
            seconds, used = time.perf_counter() - start, time.process_time() - busy
            print(
                f"{method:16} {seconds:7.2f} s ({used:.2f} s CPU)   ranks {report.ranks}   "
                f"error {report.error:.2e}"
            )


if __name__ == "__main__":
    main()
