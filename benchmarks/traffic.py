"""What two processes send for a step, by engine and method: ``python -m benchmarks.traffic``.

Two processes under gloo train a tiny network of each kind; torch's profiler tells the size of each
collective. Printed is the payload of one process in multiples of the weights (W) and of the trained
numbers (T). It does not depend on the network's size or on the number of processes; what a ring of
N then sends over each link is (N - 1) / N times the payload, twice that for an all-reduce.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

KINDS = {"c10d::_allgather_base_": "gathered", "c10d::_reduce_scatter_base_": "scattered"}


def networks() -> dict[str, Any]:
    """A small network of each kind, and what its forward pass takes."""
    import torch
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=down,
        up_block_types=up,
    )
    flux = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    given = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 4, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
    }
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, 4, 32),
    }
    return {"UNet": (unet, inputs), "transformer (Flux)": (flux, given)}


def work() -> None:
    """What each of the two does; the first prints."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    from dreambooth_core.methods.base import Trainable
    from dreambooth_core.trainer.distributed import join, replicated, shard

    processes = join("cpu")
    for method in ("lora", "full"):
        for engine in ("DDP", "FSDP2"):
            torch.manual_seed(0)
            for name, (model, inputs) in networks().items():
                weights = sum(p.numel() for p in model.parameters())
                if method == "lora":
                    model.requires_grad_(False)
                    targets = ["to_q", "to_k", "to_v", "to_out.0"]
                    inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), model)
                own = {n: p for n, p in model.named_parameters() if p.requires_grad}
                trained = sum(p.numel() for p in own.values())
                forward: Any = model
                if engine == "DDP":
                    forward = replicated(model, [model], processes)
                else:
                    family = SimpleNamespace(denoiser="denoiser")
                    parts = cast("Any", SimpleNamespace(denoiser=model, family=family))
                    shard(parts, [Trainable("denoiser", own)], processes, offload=False)
                for _ in range(2):  # the first step also sets up
                    with torch.profiler.profile(record_shapes=True) as seen:
                        forward(**inputs).sample.square().mean().backward()
                sums = dict.fromkeys(("gathered", "scattered", "reduced"), 0)
                for event in seen.events():
                    sizes = [n for shape in event.input_shapes for n in shape]
                    if event.name in KINDS:
                        sums[KINDS[event.name]] += max(sizes)
                    elif engine == "DDP" and event.name == "gloo:all_reduce":
                        sums["reduced"] += max(sizes)
                cells = [
                    f"{sums['gathered'] / weights:.2f} W",
                    f"{sums['scattered'] / trained:.2f} T",
                    f"{sums['reduced'] / trained:.2f} T",
                ]
                if processes.is_main:
                    print("|", " | ".join([name, method, engine, *cells]), "|", flush=True)
    processes.close()


def main() -> None:
    print("| network | trained | engine | gathered | reduce-scattered | all-reduced |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.traffic"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(1)


if __name__ == "__main__":
    if "RANK" in os.environ:
        work()
    else:
        main()
