"""Runs in two processes of one group, as torch's launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dreambooth_core.jobs import RunFolder

ROOT = Path(__file__).parents[2]
BOTH = """
import gc, importlib, os, sys
from pathlib import Path
from unittest import mock
from dreambooth_core.deferral import load_libraries
from dreambooth_core.jobs import RunFolder
from dreambooth_core.devices import is_sharded
from dreambooth_core.trainer import train
from dreambooth_core.trainer.train import Training
from dreambooth_core.worker import supervise
from tests.helpers.runs import bare

def noting(parts, *rest, **options):
    shards = shard(parts, *rest, **options)
    every = list(parts.denoiser.parameters())
    held = sum((p.to_local() if is_sharded(p) else p).numel() for p in every)
    share = held / sum(p.numel() for p in every)
    Path(folder, "held-" + os.environ["RANK"]).write_text(str(share))
    return shards

def dying(self, step):
    if step == 1 and os.environ["RANK"] == "1" and Path(folder, "dies").exists():
        os._exit(9)
    return backward(self, step)

codes, shard, backward = [], train.shard, Training.backward
second, ranks, places = 0, sys.argv[1], sys.argv[2:]
if ranks == "both":
    load_libraries()
    for name in ("diffusers.models.unets.unet_2d_condition", "torch._dynamo", "peft.tuners.lora",
                 "transformers.models.clip.modeling_clip", "torch.distributed.fsdp"):
        importlib.import_module(name)
    gc.freeze()
    second = os.fork()
    ranks = "0" if second else "1"
os.environ["RANK"] = os.environ["LOCAL_RANK"] = ranks
noted = mock.patch.object(train, "shard", noting)
with bare(), noted, mock.patch.object(Training, "backward", dying):
    for place in places:
        os.environ["MASTER_PORT"], _, folder = place.partition(":")
        codes.append(supervise(RunFolder(Path(folder))))
if second:
    _, how = os.waitpid(second, 0)
    print("second", os.waitstatus_to_exitcode(how))
sys.exit(max(codes))
"""
"""What two processes do: one run after another, each group at a port of its own. Where processes
can be forked the second is, once all is imported. Beside a run is told what part of a sharded
denoiser the process holds; one that has a file "dies" loses its second process at the second
step."""


def train_in_two(folders: Sequence[RunFolder]) -> list[int]:
    """Does every run, all in the same two processes: importing takes longer than the runs. Returns
    the exit codes of the two."""
    numbered = zip(ports(len(folders)), folders, strict=True)
    places = [f"{port}:{folder.path}" for port, folder in numbered]
    environ = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    started = []
    for ranks in ["both"] if hasattr(os, "fork") else ["0", "1"]:
        command = [sys.executable, "-c", BOTH, ranks, *places]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=900)[0] for process in started]
    codes = [process.returncode for process in started]
    told = [int(line.split()[1]) for line in said[0].splitlines() if line.startswith("second ")]
    return [*codes, *told]


def ports(count: int) -> list[int]:
    """Free ports of the loopback device, all different."""
    with ExitStack() as taken:
        found = []
        for _ in range(count):
            free = taken.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            found.append(int(free.getsockname()[1]))
    return found
