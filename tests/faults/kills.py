"""Kills and signals at every stage of a run: ``python -m tests.faults.kills``.

A run is started, is hit at the n-th thing that it tells (or a moment later, in the midst of what
follows), is resumed, and must come to the very bytes of the run that nobody disturbed; and no step
that was promised to be kept is trained again. Every life of a run is a process of its own, forked
from one that has everything imported; a run in two processes is two of them in one gloo group.

python -m tests.faults.kills                  all; a table of counts, exit code 1 if one is lost
python -m tests.faults.kills --every 7        only every 7th, from the first or from --first N
python -m tests.faults.kills --json FILE      write every trial there
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from dreambooth_core.config.loading import dump, load
from dreambooth_core.deferral import load_libraries
from dreambooth_core.jobs import Event, Proposal, RunFolder, read_receipt, saved_steps, status
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import run as runs
from dreambooth_core.worker import supervise
from tests.helpers.runs import PRIOR, config_for, folder_for
from tests.helpers.tiny import draw_pictures, tiny_sd1

SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")
PATIENCE = 300.0
"""Seconds for one life; far more than it takes on a busy machine."""

OPTIONS: dict[str, Any] = {
    **PRIOR,
    "prior__num_class_images": 2,
    "prior__batch_size": 1,
    "data__cache": "disk",
    "method__rank": 2,
    "optim__ema__enabled": "true",
    "run__steps": 5,
    "run__batch_size": 1,
    "save__every_steps": 2,
    "validation__prompts": "[a ball]",
    "validation__every_steps": 2,
    "validation__num_inference_steps": 2,
}


@dataclass
class Trial:
    """One run that is hit once, and what became of it."""

    processes: int
    number: int
    """Of the event at which it is hit, from 0."""
    signal: str
    delay: float
    """Seconds after the event."""
    rank: int = 0
    """The process that is hit."""
    stage: str = ""
    """What it was doing."""
    problems: list[str] = field(default_factory=list)
    ended: str = ""
    """How the first life ended: its state, or ``in time`` if it was over before."""

    def __str__(self) -> str:
        who = f"process {self.rank} of {self.processes}"
        return f"{self.signal} to {who}, event {self.number} + {self.delay * 1000:.0f} ms"


@dataclass
class Scene:
    """Where runs are made."""

    base: Path
    images: Path
    root: Path

    def new(self, name: str, processes: int) -> RunFolder:
        """A run with caches and class images of its own."""
        config = config_for(self.base, self.images, self.root / name, **OPTIONS)
        config.run.batch_size = 2 // processes
        return folder_for(config)


def live(folder: RunFolder, trial: Trial | None, processes: int, *, resume: bool) -> list[int]:
    """One life of a run, in so many processes; their exit codes, negative for a signal.

    As a launcher does, a process that died by a signal takes the others along.
    """
    offer = None
    if resume:
        config = load(TrainConfig, files=[folder.config], overrides=["run.resume=latest"])
        offer = Proposal.make(folder, {folder.config.name: dump(config)})
    port, start = _free_port(), folder.control.mark_start(folder.events.size())
    pids: list[int] = []
    for rank in reversed(range(processes)):  # the first knows the others, to hit them
        pid = os.fork()
        if pid == 0:
            place: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
            _be(folder, offer, trial if rank == 0 else None, [*pids, os.getpid()][::-1])
        pids.append(pid)
    codes = _wait(pids[::-1])
    folder.control.mark_exited(start, codes[0])
    return codes


def _be(folder: RunFolder, offer: Proposal | None, trial: Trial | None, pids: list[int]) -> None:
    """A worker's whole life, in a forked process."""
    code = 1
    try:
        log = os.open(folder.path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        seen = 0

        def hit(event: Event) -> None:
            nonlocal seen
            seen += 1
            if trial is None or seen != trial.number + 1:
                return
            number = getattr(signal, trial.signal)
            if trial.delay == 0:
                os.kill(pids[trial.rank], number)
            else:
                threading.Timer(trial.delay, os.kill, (pids[trial.rank], number)).start()

        with (
            mock.patch.object(runs, "estimate_of", lambda *_: None),
            mock.patch.object(runs, "loss_chart", lambda *_: b""),
        ):
            code = supervise(folder, on_event=hit, noted=True, proposal=offer)
    finally:
        os._exit(code)


def _wait(pids: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE
    while len(codes) < len(pids):
        for pid in pids:
            if pid in codes:
                continue
            ended, how = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(how)
        doomed = any(code < 0 for code in codes.values()) or time.monotonic() > deadline
        for pid in pids if doomed else []:
            if pid not in codes:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def events_of(folder: RunFolder) -> list[Event]:
    """What a run told, without the times."""
    return [{k: v for k, v in event.items() if k != "time"} for event in folder.events]


def trials(told: dict[int, list[Event]], *, seed: int = 0) -> Iterator[Trial]:
    """Every event, at once or a moment later: in one process by every signal, in two by one after
    the other, to one of them.

    Args:
        told: what the undisturbed runs told, by their number of processes.
        seed: of the delays.
    """
    chance = random.Random(seed)
    for processes, events in told.items():
        for number, event in enumerate(events):
            turned = [SIGNALS[(number + turn) % len(SIGNALS)] for turn in range(len(SIGNALS))]
            for kind in turned if processes == 1 else turned[:1]:
                later = chance.random() < 0.5
                # The proof tells nothing: it is what follows upon the last events.
                longest = 0.15 if number < len(events) - 3 else 0.8
                yield Trial(
                    processes,
                    number,
                    kind,
                    delay=round(chance.uniform(0.001, longest), 4) if later else 0.0,
                    rank=chance.randrange(processes),
                    stage=_stage(event),
                )


def _stage(event: Event) -> str:
    kind = str(event["kind"])
    return str(event.get("stage", kind)) if kind == "progress" else kind


def judge(scene: Scene, trial: Trial, wanted: bytes) -> None:
    """Does a trial and notes what is wrong with its outcome."""
    folder = scene.new(f"{trial.processes}-{trial.number}-{trial.signal}", trial.processes)
    codes = live(folder, trial, trial.processes, resume=False)
    trial.ended = status(folder).state
    if trial.ended == "finished":
        trial.ended = "in time"
    elif trial.signal != "SIGKILL" and trial.ended != "stopped":
        trial.problems.append(f"it {trial.ended}: {status(folder).message} (exit codes {codes})")
    elif trial.signal != "SIGKILL" and codes != [130] * trial.processes:
        trial.problems.append(f"exit codes {codes} in place of 130")
    kept = _kept(folder, trial.signal)
    there = max(saved_steps(folder.checkpoints), default=0)
    if trial.ended != "in time":
        if there < kept:
            trial.problems.append(f"step {kept} was learned, step {there} is kept")
        since = folder.events.size()
        again = live(folder, None, trial.processes, resume=True)
        started = [e for e in folder.events.read(since)[0] if e["kind"] == "started"]
        if again != [0] * trial.processes:
            trial.problems.append(f"it does not resume: {again}, {status(folder).message}")
        elif started[0]["step"] != there:
            trial.problems.append(f"it resumes at step {started[0]['step']}, {there} was kept")
    if result_of(folder) != wanted:
        trial.problems.append("the result differs from the undisturbed run's")
    left = [path.name for path in folder.path.rglob(".*") if path.name != ".ballast"]
    if left:
        trial.problems.append(f"left behind: {left}")
    if not trial.problems:
        shutil.rmtree(folder.path.parent)


def _kept(folder: RunFolder, kind: str) -> int:
    """The step that must not be lost: after a kill the last that was saved, else the last."""
    steps = [0]
    for event in folder.events:
        if event["kind"] == "saved" and not event["result"]:
            steps.append(event["step"])
        if kind != "SIGKILL" and event.get("stage") == "train":
            steps.append(event["step"])
    return max(steps)


def result_of(folder: RunFolder) -> bytes:
    """The tensors of the proven result, as bytes; none where there is none."""
    receipt = read_receipt(folder)
    if not receipt.get("proof", {}).get("passed"):
        return b""
    from safetensors.torch import load_file, save

    return save(load_file(folder.path / receipt["result"]["file"]))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth trial")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with the Nth")
    parser.add_argument("--processes", type=int, choices=(1, 2), help="only runs in so many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial there")
    args = parser.parse_args()
    load_libraries()
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        scene = Scene(tiny_sd1(root / "base"), draw_pictures(root / "images"), root / "runs")
        told, wanted = {}, {}
        for processes in [args.processes] if args.processes else [1, 2]:
            folder = scene.new(f"whole-{processes}", processes)
            codes = live(folder, None, processes, resume=False)
            told[processes], wanted[processes] = events_of(folder), result_of(folder)
            if any(codes) or not wanted[processes]:
                sys.stderr.write(folder.path.with_suffix(".log").read_text())
                raise SystemExit(f"the undisturbed run failed: {status(folder).message}")
        done = list(trials(told))[args.first :: args.every]
        for number, trial in enumerate(done, 1):
            judge(scene, trial, wanted[trial.processes])
            for problem in trial.problems:
                sys.stdout.write(f"{trial} ({trial.stage}): {problem}\n")
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{number} of {len(done)}")
            sys.stdout.flush()
    _tell(done)
    if args.json:
        args.json.write_text(json.dumps([asdict(trial) for trial in done], indent=1))
    children = os.times()
    seconds = time.process_time() - began + children.children_user + children.children_system
    sys.stdout.write(f"{len(done)} trials, {seconds:.0f} CPU seconds\n")
    return int(any(trial.problems for trial in done))


def _tell(done: list[Trial]) -> None:
    """A line for each stage and signal: how many, and how many were lost."""
    counts: Counter[tuple[int, str, str]] = Counter()
    lost: Counter[tuple[int, str, str]] = Counter()
    for trial in done:
        key = (trial.processes, trial.stage, trial.signal)
        counts[key] += 1
        lost[key] += bool(trial.problems)
    sys.stdout.write("processes  stage          signal   trials  lost\n")
    for key in counts:
        sys.stdout.write(f"{key[0]:<9}  {key[1]:<13}  {key[2]:<7}  {counts[key]:>6}  {lost[key]}\n")
    total = sum(lost.values())
    sys.stdout.write(f"{sum(counts.values())} kills and signals, {total} lost\n")


if __name__ == "__main__":
    sys.exit(main())
