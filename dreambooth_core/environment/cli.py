"""What ``python install.py …`` does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.environment.layout import Layout, locate
from dreambooth_core.environment.processes import clean_environment, run_in_front, stoppable
from dreambooth_core.environment.recipe import status
from dreambooth_core.errors import DreamBoothError

DESCRIPTION = """\
Makes or refreshes the engine's own Python environment (.venv here, or where DREAMBOOTH_ENV says).
Nothing is installed into the Python that runs this. Up to date, it says nothing."""

COMMANDS = {
    "build": "make or refresh the environment (the default)",
    "demo": "that, and then watch a tiny Stable Diffusion learn a new subject",
    "test": "that with the test tools, and then run ruff, mypy and pytest (arguments go to pytest)",
    "status": "say whether the environment is ready, and what building it would download",
}


def main(root: Path, argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0, 1 failed, 2 wrong usage, 130 stopped.

    Args:
        root: the clone.
        argv: the arguments after ``install.py``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a folder's name may not fit the console
    if not argv and called_by_webui():
        return 0
    args, rest = _parser().parse_known_args(argv)
    if rest and args.command not in ("demo", "test"):
        _parser().error(f"unknown argument: {rest[0]}")
    layout = locate(root)
    if args.command == "status":
        return _status(layout, as_json=args.json)
    code = _build(layout, args)
    if code or args.command == "build":
        return code
    run = _demo if args.command == "demo" else _test
    try:
        return run(layout, rest)
    except KeyboardInterrupt:
        return 130


def called_by_webui() -> bool:
    """Whether AUTOMATIC1111's WebUI or Forge runs us, as it does at each of its starts.

    It puts its own folder first on PYTHONPATH. It shows an installer's output only at the end,
    so that gigabytes would look like a hang: the environment is built from its tab instead.
    """
    first = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    return bool(first) and Path(first, "modules", "launch_utils.py").is_file()


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<8}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="install.py",
        description=DESCRIPTION,
        epilog=f"commands:\n{commands}\n\n"
        "TORCH_INDEX_URL, INDEX_URL and pip's configuration say where packages come from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="build", choices=COMMANDS, metavar="command")
    parser.add_argument(
        "--torch", metavar="BUILD", help="auto, cpu, cu130, cu126, rocm7.2 or xpu; remembered"
    )
    parser.add_argument("--xformers", action="store_true", help="add xformers (NVIDIA)")
    parser.add_argument("--rebuild", action="store_true", help="anew, even if up to date")
    parser.add_argument(
        "--progress-file", type=Path, metavar="FILE", help="append progress, one JSON object a line"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="where pip's output goes")
    parser.add_argument("--json", action="store_true", help="status for programs")
    return parser


def _build(layout: Layout, args: argparse.Namespace) -> int:
    """Brings the environment up to date; tells how it ended only if there was something to do."""
    test = args.command == "test"
    if not (test or args.xformers or args.rebuild or args.progress_file):
        now = status(layout, args.torch)
        if now.ready and now.project_ready:
            return 0  # the usual case, decided without importing what builds
    from dreambooth_core.environment.builder import Builder, Wish
    from dreambooth_core.environment.progress import Console, ProgressFile, Reporter

    files = [ProgressFile(args.progress_file)] if args.progress_file else []
    reporter = Reporter(Console(), *files)
    log = args.log or layout.home.with_name(layout.home.name + ".log")
    try:
        with stoppable():
            Builder(layout, reporter, log).bring_up_to(
                Wish(torch=args.torch, test=test, xformers=args.xformers, rebuild=args.rebuild)
            )
    except DreamBoothError as error:
        code, said = error.exit_code, error.line
    except KeyboardInterrupt:
        code, said = 130, "stopped, nothing half-made is left. Run it again to continue"
    except OSError as error:
        said = f"{error.filename or layout.home}: {error.strerror or error}. "
        said += "Make it writable, or set DREAMBOOTH_ENV to a folder of yours"
        code = 1
    else:
        if args.progress_file:
            reporter.end(True, f"The engine is ready in {layout.home}")
        return 0
    reporter.end(False, f"install.py: {said}")
    return code


def _status(layout: Layout, as_json: bool) -> int:
    """Says whether the environment is ready, and if not what building it would take."""
    from dreambooth_core.environment.plan import plan

    now = status(layout)
    facts: dict[str, object] = {
        "ready": now.ready,
        "reason": now.reason,
        "home": str(layout.home),
    }
    known = layout.known()
    if now.ready and known and known.unverified:
        facts["unverified"] = known.unverified
    if not now.ready:
        try:
            facts.update(plan(layout))
        except DreamBoothError as error:
            facts["error"] = error.line
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        sys.stdout.writelines(f"{key}: {value}\n" for key, value in facts.items())
    return 0 if now.ready else 1


def _demo(layout: Layout, arguments: Sequence[str]) -> int:
    return _in_environment(layout, ["-m", "dreambooth_core", "demo", *arguments])


SIDE_BY_SIDE = (
    f"--numprocesses={min(4, (os.cpu_count() or 1) + 1)}",
    "--dist=loadfile",
    "--no-loadscope-reorder",
)
"""pytest runs a file on each core, in the order of tests/conftest.py, and one more, as there is
always a test that waits: for a browser, an index or a disk. More than four would ask for
more memory than many have."""


def _test(layout: Layout, arguments: Sequence[str]) -> int:
    """All three checks run, so that one look shows everything; pytest's summary comes last."""
    codes = {
        "ruff": _in_environment(layout, ["-m", "ruff", "check", "."]),
        "mypy": _in_environment(layout, ["-m", "mypy"]),
        # Processes side by side that each take every core would wait for each other.
        "pytest": _in_environment(
            layout, ["-m", "pytest", *SIDE_BY_SIDE, *arguments], OMP_NUM_THREADS="1"
        ),
    }
    failed = [name for name, code in codes.items() if code]
    if failed:
        sys.stderr.write(f"install.py: failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def _in_environment(layout: Layout, arguments: Sequence[str], **variables: str) -> int:
    """Runs Python in the engine's environment, in the clone's folder.

    ``variables`` are environment variables for where the user has set none.
    """
    sys.stdout.flush()
    return run_in_front(
        [*layout.command(), *arguments], layout.root, variables | clean_environment()
    )
