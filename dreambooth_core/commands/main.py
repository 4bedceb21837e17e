"""``dreambooth COMMAND``: finds the command, runs it, turns errors into one line.

A command is a module with a dataclass ``Options`` (see ``options.py``) and ``run(options)``, which
returns the exit code where that is not always 0. It is imported only when it is called, so that
``dreambooth check`` does not wait for what ``dreambooth train`` needs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from dreambooth_core import __version__
from dreambooth_core.commands.options import add_options, from_arguments
from dreambooth_core.deferral import defer
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.quiet import quieten

COMMANDS: dict[str, str] = {
    "train": "learn a subject or style from images, by a configuration file",
    "check": "say what a configuration would do, without doing it",
    "estimate": "say how much memory a run needs, before it starts",
    "presets": "list presets, or show one with its reasons",
    "launch": "train with several processes, by accelerate's launcher",
    "sample": "make images with a base, and adapters at given weights",
    "caption": "write a caption beside each image, by a model that looks at it",
    "mask": "write a mask of what a word means beside each image",
    "crop": "suggest, list or take back crops: the part of an image that is trained on",
    "mark": "call images of a run good or bad, to go on from there",
    "evaluate": "judge what runs have learned, with numbers and a page of images",
    "inspect": "say what a model file or adapter is",
    "convert": "turn a checkpoint or adapter into another format",
    "merge": "add up adapters with weights",
    "extract": "get an adapter out of two checkpoints",
    "bake": "write adapters into a checkpoint",
    "resize": "change an adapter's rank",
    "compat": "take the flags of a training or conversion script that tutorials name",
    "demo": "watch a tiny Stable Diffusion learn a new subject",
    "runs": "list runs, follow one, or send it a command",
    "task": "do what a request file says, for programs that ask in place of people",
    "doctor": "check versions, devices, attention kernels, memory and disk",
}
"""Command names and their one-line help; ``commands/<name>.py`` holds each."""


def load(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"dreambooth_core.commands.{name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 bad input, 130 stopped."""
    quieten()
    if argv is None:
        defer()  # this process is ours alone
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((a for a in arguments if not a.startswith("-")), None)
    parser = _parser(name if name in COMMANDS else None)
    args = _parse(parser, arguments)
    try:
        module = load(args.command)
        return int(module.run(from_arguments(module.Options, args)) or 0)
    except DreamBoothError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if "--json" in arguments:
            json.dump({"error": error.as_dict()}, sys.stdout)
            sys.stdout.write("\n")
        else:
            sys.stderr.write(f"dreambooth {args.command}: {error.line}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"dreambooth {args.command}: stopped\n")
        return 130


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The arguments; ``key=value`` and a run's name may stand anywhere, also behind flags."""
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "name", "") is None:
        args.name = rest.pop()
    stray = [a for a in rest if a.startswith("-") or "=" not in a]
    if stray or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(stray or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser(name: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreambooth", description="Teach Stable Diffusion something new."
    )
    parser.add_argument("--version", action="version", version=f"dreambooth {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, text in COMMANDS.items():
        sub = commands.add_parser(command, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if command == name:
            module = load(command)
            add_options(sub, module.Options)
            if hasattr(module, "EXAMPLES"):
                sub.formatter_class = argparse.RawDescriptionHelpFormatter
                sub.epilog = module.EXAMPLES
    return parser
