"""``dreambooth launch CONFIG``: one run in several processes, each on a device of its own.

Wraps the launcher of this environment's accelerate, which honours its ``default_config.yaml``;
on CPUs, torch's own launcher, since accelerate's needs MPI there. Of several machines, which
share the run's folder on a disk, each starts its own processes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.commands.options import argument
from dreambooth_core.commands.train import Resuming, new_run, resumed
from dreambooth_core.environment.processes import heard
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.jobs import ENDINGS, Event, Proposal, RunFolder
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.jobs.launch import CREATE_NEW_PROCESS_GROUP, NOTED, PROPOSAL, WORKER, apart

GRACE = 10.0
"""Seconds that killed processes get to be gone: one in a driver's hands takes its time."""

CODES = {"done": 0, "stopped": Stopped.exit_code}
"""Exit codes by how the run ended; for anything else the launcher's own."""


@dataclass(kw_only=True)
class Options(Resuming):
    """What the command takes."""

    gpus: str | None = argument(None, metavar="0,1,…", help="the GPUs to use, by their numbers")
    processes: int | None = argument(
        None, metavar="N", help="how many processes", between=(1, 4096)
    )
    cpu: bool = argument(False, help="on the CPU, however many GPUs")
    nodes: int = argument(1, metavar="N", help="how many machines", between=(1, 4096))
    rendezvous: str | None = argument(
        None, metavar="HOST:PORT", help="the first machine, and a free port there, for several"
    )
    node_rank: int = argument(
        0,
        flags=["--node-rank"],
        metavar="K",
        help="which machine this is, from 0",
        between=(0, 4095),
    )
    join: str | None = argument(
        None,
        kind="run folder",
        metavar="RUN",
        help="on the other machines: the folder that the first one names",
    )
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
    if args.join:
        folder, proposal = joined(args.join)
    elif args.resume:
        folder, proposal = resumed(args)
    else:
        folder, proposal = new_run(args, elsewhere=True)[0], None
    sys.stderr.write(f"run: {folder.path}\n")
    if args.nodes > 1 and not args.join:
        sys.stderr.write(_invitation(args, proposal.path if proposal else folder.path))
    since = folder.events.size()
    try:
        code = _supervised(folder, [*command, *worker(folder, proposal)], mark=not args.join)
    finally:
        if proposal is not None and not args.join:
            proposal.withdraw()
    events, _ = folder.events.read(since)
    ending = events[-1] if events and events[-1]["kind"] in ENDINGS else {}
    if message := ending.get("message") or _unsaid(folder, events, code):
        sys.stderr.write(f"dreambooth launch: {message}\n")
    if ending.get("outcome") == "stopped":
        sys.stderr.write(f"resume with: dreambooth launch --resume {folder.path}\n")
    return CODES.get(str(ending.get("outcome")), code or 1)


def joined(path: str) -> tuple[RunFolder, Proposal | None]:
    """A run that the first machine made, or the settings in it with which that one resumes it."""
    proposal = Proposal(path)
    if not proposal.is_one:
        return RunFolder.open(path), None
    return RunFolder.open(proposal.path.parent), proposal


def _invitation(args: Options, path: Path) -> str:
    """The command for the other machines."""
    given = [f"--nodes {args.nodes}", f"--rendezvous {args.rendezvous}"]
    given += [f"--gpus {args.gpus}"] if args.gpus else []
    given += [f"--processes {args.processes}"] if args.processes else []
    given += ["--cpu"] if args.cpu else []
    options = " ".join(given)
    which = "--node-rank 1" if args.nodes == 2 else f"--node-rank K, K from 1 to {args.nodes - 1}"
    return f"on the others: dreambooth launch --join {path} {options} {which}\n"


def _unsaid(folder: RunFolder, events: Sequence[Event], code: int) -> str | None:
    """The line for a run that had begun, and whose main process died before it could say why."""
    if not code or not events or events[-1]["kind"] in ENDINGS:
        return None
    last = max(saved_steps(folder.checkpoints), default=None)
    left = "nothing was saved" if last is None else f"the run resumes from step {last}"
    return f"a process ended without a word, and the others with it; {left}"


def worker(folder: RunFolder, proposal: Proposal | None = None) -> list[str]:
    """What each process runs."""
    offered = [PROPOSAL, str(proposal.path)] if proposal is not None else []
    return ["-m", WORKER, str(folder.path), NOTED, *offered]


def _supervised(folder: RunFolder, command: list[str], *, mark: bool = True) -> int:
    """Runs the launcher to its end, with a session of its own: signals come here alone. The first
    one asks the run to save and stop, a second one ends every process at once.

    Args:
        folder: the run's.
        command: the launcher's.
        mark: whether to note the start and the end, as the first machine does.

    Returns:
        The launcher's exit code.
    """
    name = folder.control.mark_start(folder.events.size()) if mark else None
    started: list[subprocess.Popen[bytes]] = []

    def ask(_: int, count: int) -> None:
        if count == 1:
            folder.control.hear("stop")
            sys.stderr.write("saving and stopping; once more ends at once\n")
        for process in started if count > 1 else []:
            end_all(process.pid)

    with heard(ask):
        try:
            started.append(subprocess.Popen(command, **apart(CREATE_NEW_PROCESS_GROUP)))
            code = started[0].wait()
            if name is not None:
                with contextlib.suppress(UserError):  # the run's folder is gone
                    folder.control.mark_exited(name, code)
            return code
        finally:
            for process in started:
                if process.poll() is None:
                    end_all(process.pid)


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
        UserError: numbers of GPUs that are none, or that do not go with the processes asked for;
            several machines without a place to meet.
    """
    gpus = numbers(args.gpus) if args.gpus else []
    place = meeting_place(args)
    if args.cpu:
        if gpus:
            raise UserError("--cpu and --gpus exclude each other", where="--gpus")
        start = ["--standalone"]
        if place is not None:
            start = ["--nnodes", str(args.nodes), "--node-rank", str(args.node_rank)]
            start += ["--master-addr", place[0], "--master-port", place[1]]
        start += ["--nproc-per-node", str(args.processes or 2)]
        return [sys.executable, "-m", "torch.distributed.run", *start]
    count = args.processes or len(gpus)
    if gpus and count != len(gpus):
        raise UserError(
            f"{count} processes cannot share {len(gpus)} GPUs",
            where="--processes",
            do="Leave --processes away: there is one for each GPU.",
        )
    options = ["--config_file", args.config_file] if args.config_file else []
    if place is not None:
        if not count:
            raise UserError(
                "not said how many processes each machine starts",
                where="--processes",
                do="Give --gpus 0,1,… or --processes N, the same on every machine.",
            )
        options += ["--num_machines", str(args.nodes), "--machine_rank", str(args.node_rank)]
        options += ["--main_process_ip", place[0], "--main_process_port", place[1]]
    if gpus:
        options += ["--gpu_ids", ",".join(map(str, gpus))]
    if count:
        options += ["--num_processes", str(count * args.nodes)]
    if count * args.nodes > 1:
        options.append("--multi_gpu")
    return [sys.executable, "-m", "accelerate.commands.launch", *options]


def meeting_place(args: Options) -> tuple[str, str] | None:
    """Host and port where the machines meet; None with one machine.

    Raises:
        UserError: it is missing or none, or the machine's number does not fit.
    """
    if args.nodes == 1:
        for flag, given in (("--rendezvous", args.rendezvous), ("--join", args.join)):
            if given:
                raise UserError("is for several machines", where=flag, do="Add --nodes N.")
    if args.node_rank >= args.nodes:
        raise UserError(
            f"machine {args.node_rank} of {args.nodes}: they are numbered from 0",
            where="--node-rank",
        )
    if args.nodes == 1:
        return None
    if bool(args.node_rank) != bool(args.join):
        raise UserError(
            "the first machine makes the run, and the others join it",
            where="--join" if args.join else "--node-rank",
            do="Start with --node-rank 0, and follow what that prints on the others.",
        )
    host, colon, port = (args.rendezvous or "").strip().rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(
            f"{args.rendezvous!r} is no place to meet" if args.rendezvous else "no place to meet",
            where="--rendezvous",
            do="Give the first machine's name or address and a free port, as in 10.0.0.1:29500.",
        )
    return host.strip("[]"), port


def numbers(text: str) -> list[int]:
    """``0,1,3`` as numbers. Raises ``UserError``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 5 for part in parts) or len(
        set(parts)
    ) != len(parts):
        raise UserError(f"{text!r} are no GPUs", where="--gpus", do="Write them as in 0,1,2,3.")
    return [int(part) for part in parts]
