"""``dreambooth task REQUEST.json``: a command by a typed request in place of a command line.

The WebUI's extension and the ComfyUI nodes ask in this way: nothing that a person or a script
wrote becomes an argument of a program. A request is a JSON file::

    {"task": "merge", "options": {"adapters": [{"file": "/a.safetensors", "weight": 0.7}],
                                  "out": "/ab.safetensors", "rank": 16}}

``options`` are the fields of the command's ``Options``. Every value has its field's own type;
a key that is not known is an error. Reports are JSON.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.commands.main import load
from dreambooth_core.commands.options import Reporting, argument, from_request
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json

TASKS = (
    "inspect",
    "merge",
    "bake",
    "extract",
    "convert",
    "resize",
    "check",
    "train",
    "caption",
    "mask",
    "evaluate",
)

LARGEST = 16_000_000
"""Bytes of a request: a configuration with many captions' worth of text, and no more."""


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    request: Path = argument(
        kind="config file", positional=True, metavar="REQUEST", help="a JSON file"
    )


def run(args: Options) -> int:
    """Does the task; returns its exit code.

    Raises:
        UserError: the file is no request, or something in it is wrong; or the task's own.
    """
    name, options = typed(parse_json(read_bytes(args.request, LARGEST), largest=LARGEST))
    return int(load(name).run(options) or 0)


def typed(request: Any) -> tuple[str, Any]:
    """The task's name and its options, out of a request.

    Raises:
        UserError: it is no request, or something in it is wrong.
    """
    shape = isinstance(request, dict) and set(request) == {"task", "options"}
    if not shape or not isinstance(request["options"], dict):
        raise UserError('a request is {"task": …, "options": {…}}')
    name = request["task"]
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}", do=f"Known: {', '.join(TASKS)}.")
    options = from_request(load(name).Options, request["options"])
    return name, dataclasses.replace(options, json=True)
