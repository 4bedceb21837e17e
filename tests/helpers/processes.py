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
EACH = """
import os, sys
from pathlib import Path
from unittest import mock
from dreambooth_core.jobs import RunFolder
from dreambooth_core.devices import is_sharded
from dreambooth_core.trainer import train
from dreambooth_core.trainer.train import Training
from dreambooth_core.worker import supervise
from tests.helpers.runs import bare

codes, shard = [], train.shard

def noting(parts, *rest, **options):
    shards = shard(parts, *rest, **options)
    every = list(parts.denoiser.parameters())
    held = sum((p.to_local() if is_sharded(p) else p).numel() for p in every)
    share = held / sum(p.numel() for p in every)
    Path(folder, "held-" + os.environ["RANK"]).write_text(str(share))
    return shards

backward = Training.backward

def dying(self, step):
    if step == 1 and os.environ["RANK"] == "1" and Path(folder, "dies").exists():
        os._exit(9)
    return backward(self, step)

noted = mock.patch.object(train, "shard", noting)
with bare(), noted, mock.patch.object(Training, "backward", dying):
    for place in sys.argv[1:]:
        os.environ["MASTER_PORT"], _, folder = place.partition(":")
        codes.append(supervise(RunFolder(Path(folder))))
sys.exit(max(codes))
"""
"""What each process does: one run after another, each group at a port of its own. Beside a run is
told what part of a sharded denoiser the process holds; one that has a file "dies" loses its second
process at the second step."""


def train_in_two(folders: Sequence[RunFolder]) -> list[int]:
    """Does every run, all in the same two processes: importing takes longer than the runs. Returns
    the exit codes of the two."""
    numbered = zip(ports(len(folders)), folders, strict=True)
    places = [f"{port}:{folder.path}" for port, folder in numbered]
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environ = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-c", EACH, *places]
        started.append(subprocess.Popen(command, cwd=ROOT, env=environ))
    return [process.wait(900) for process in started]


def ports(count: int) -> list[int]:
    """Free ports of the loopback device, all different."""
    with ExitStack() as taken:
        found = []
        for _ in range(count):
            free = taken.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            found.append(int(free.getsockname()[1]))
    return found
