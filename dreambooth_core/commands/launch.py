"""``dreambooth launch CONFIG``: one run in several processes, each on a device of its own.

Wraps the launcher of this environment's accelerate, which honours its ``default_config.yaml``;
on CPUs, torch's own launcher, since accelerate's needs MPI there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from dreambooth_core.commands.options import argument
from dreambooth_core.commands.train import Resuming, new_run, resumed
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.jobs import ENDINGS, Proposal, RunFolder
from dreambooth_core.jobs.launch import CREATE_NEW_PROCESS_GROUP, NOTED, PROPOSAL, WORKER
from dreambooth_core.worker import SIGNALS

GRACE = 10.0
"""Seconds that killed processes get to be gone: one in a driver's hands takes its time."""

CODES = {"done": 0, "stopped": Stopped.exit_code}
"""Exit codes by how the run ended; for anything else the launcher's own."""


@dataclass(kw_only=True)
class Options(Resuming):
    """What the command takes."""

    gpus: str | None = argument(None, metavar="0,1,…", help="the GPUs to use, by their numbers")
    processes: int | None = argument(
        None, metavar="N", help="how many processes", minimum=1, maximum=4096
    )
    cpu: bool = argument(False, help="on the CPU, however many GPUs")
    config_file: str | None = argument(
        None,
        kind="config file",
        flags=["--config-file"],
        metavar="FILE",
        help="accelerate's, in place of its own",
    )
    json: bool = argument(False, hidden=True, help="events as JSON")


def run(args: Options) -> int:
    """Trains in several processes; returns the exit code."""
    command = launcher(args)
    folder, proposal = resumed(args) if args.resume else (new_run(args, elsewhere=True)[0], None)
    sys.stderr.write(f"run: {folder.path}\n")
    since = folder.events.size()
    try:
        code = _supervised(folder, [*command, *worker(folder, proposal)])
    finally:
        if proposal is not None:
            proposal.withdraw()
    events, _ = folder.events.read(since)
    ending = events[-1] if events and events[-1]["kind"] in ENDINGS else {}
    if message := ending.get("message"):
        sys.stderr.write(f"dreambooth launch: {message}\n")
    if ending.get("outcome") == "stopped":
        sys.stderr.write(f"resume with: dreambooth launch --resume {folder.path}\n")
    return CODES.get(str(ending.get("outcome")), code or 1)


def worker(folder: RunFolder, proposal: Proposal | None = None) -> list[str]:
    """What each process runs."""
    offered = [PROPOSAL, str(proposal.path)] if proposal is not None else []
    return ["-m", WORKER, str(folder.path), NOTED, *offered]


def _supervised(folder: RunFolder, command: list[str]) -> int:
    """Runs the launcher to its end, with a session of its own: signals come here alone. The first
    one asks the run to save and stop, a second one ends every process at once.

    Returns:
        The launcher's exit code.
    """
    name = folder.control.mark_start(folder.events.size())
    windows = {"creationflags": CREATE_NEW_PROCESS_GROUP}
    loose: dict[str, Any] = windows if os.name == "nt" else {"start_new_session": True}
    started: list[subprocess.Popen[bytes]] = []
    count = 0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count == 1:
            folder.control.hear("stop")
            sys.stderr.write("saving and stopping; once more ends at once\n")
        for process in started if count > 1 else []:
            end_all(process.pid)

    numbers = [getattr(signal, each) for each in SIGNALS if hasattr(signal, each)]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        started.append(subprocess.Popen(command, **loose))
        code = started[0].wait()
        with contextlib.suppress(UserError):  # the run's folder is gone
            folder.control.mark_exited(name, code)
        return code
    finally:
        for process in started:
            if process.poll() is None:
                end_all(process.pid)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def end_all(pid: int) -> None:
    """Ends a process and all that it started: torch's launcher puts each worker into a session of
    its own, where no signal to the launcher's group reaches it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(pid)
        workers = launcher.children(recursive=True)
        for process in [*workers, launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(workers, timeout=GRACE)


def launcher(args: Options) -> list[str]:
    """The launcher's command line, up to the module.

    Raises:
        UserError: numbers of GPUs that are none, or that do not go with the processes asked for.
    """
    gpus = numbers(args.gpus) if args.gpus else []
    if args.cpu:
        if gpus:
            raise UserError("--cpu and --gpus exclude each other", where="--gpus")
        start = ["--standalone", "--nproc-per-node", str(args.processes or 2)]
        return [sys.executable, "-m", "torch.distributed.run", *start]
    count = args.processes or len(gpus)
    if gpus and count != len(gpus):
        raise UserError(
            f"{count} processes cannot share {len(gpus)} GPUs",
            where="--processes",
            do="Leave --processes away: there is one for each GPU.",
        )
    options = ["--config_file", args.config_file] if args.config_file else []
    if gpus:
        options += ["--gpu_ids", ",".join(map(str, gpus))]
    if count:
        options += ["--num_processes", str(count)]
    if count > 1:
        options.append("--multi_gpu")
    return [sys.executable, "-m", "accelerate.commands.launch", *options]


def numbers(text: str) -> list[int]:
    """``0,1,3`` as numbers. Raises ``UserError``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 5 for part in parts) or len(
        set(parts)
    ) != len(parts):
        raise UserError(f"{text!r} are no GPUs", where="--gpus", do="Write them as in 0,1,2,3.")
    return [int(part) for part in parts]
