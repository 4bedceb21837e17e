"""``dreambooth launch CONFIG``: one run in several processes, each on a device of its own.

Wraps the launcher of this environment's accelerate, which honours its ``default_config.yaml``;
on CPUs, torch's own launcher, since accelerate's needs MPI there.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from dreambooth_core.commands.options import argument
from dreambooth_core.commands.train import Resuming, new_run, resumed
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.jobs import RunFolder, status

CODES = {"finished": 0, "stopped": Stopped.exit_code}
"""Exit codes by how the run ended; for anything else the launcher's own."""


@dataclass(kw_only=True)
class Options(Resuming):
    """What the command takes."""

    gpus: str | None = argument(None, metavar="0,1,…", help="the GPUs to use, by their numbers")
    processes: int | None = argument(None, metavar="N", help="how many processes")
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
    folder = resumed(args) if args.resume else new_run(args, elsewhere=True)[0]
    sys.stderr.write(f"run: {folder.path}\n")
    code = subprocess.run([*command, *worker(folder)], check=False).returncode
    found = status(folder)
    if found.state == "failed":
        sys.stderr.write(f"dreambooth launch: {found.message}\n")
    return CODES.get(found.state, code or 1)


def worker(folder: RunFolder) -> list[str]:
    """What each process runs."""
    return ["-m", "dreambooth_core.worker", str(folder.path)]


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
    if not all(part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise UserError(f"{text!r} are no GPUs", where="--gpus", do="Write them as in 0,1,2,3.")
    return [int(part) for part in parts]
