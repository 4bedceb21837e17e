"""``dreambooth mark RUN --good IMAGE --bad IMAGE``: what a run has made, called good or bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.data.marks import BAD, GOOD
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder
from dreambooth_core.options.marking import counted, generated, mark_run

EXAMPLES = """\
Marks lie in marks.json beside the images, in the run's folder samples. A run goes on from there in
a new one: good and bad images of one prompt train by Diffusion-DPO, good ones join the subject's.

examples:
  dreambooth mark runs/dog                                         the images and their marks
  dreambooth mark runs/dog --good step-000800-00.png --bad step-000800-01.png
  dreambooth train --continue runs/dog run.steps=200
"""


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes."""

    run: str = argument(kind="run folder", positional=True, metavar="RUN", help="a run's folder")
    good: list[str] = argument(
        factory=list, repeated=True, metavar="IMAGE", help="this one is good; again for more"
    )
    bad: list[str] = argument(
        factory=list, repeated=True, metavar="IMAGE", help="this one is bad; again for more"
    )
    clear: list[str] = argument(
        factory=list, repeated=True, metavar="IMAGE", help="nothing is said of this one any more"
    )


def run(args: Options) -> None:
    """Marks the images and lists them all."""
    folder = RunFolder.open(args.run)
    given = [(GOOD, args.good), (BAD, args.bad), ("", args.clear)]
    named = [name for _, names in given for name in names]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise UserError(f"{twice!r} is named twice", do="Say one thing of each image.")
    if named:
        mark_run(folder, {name: mark for mark, names in given for name in names})
    found = generated(folder)
    report: dict[str, Any] = {"images": [one.as_dict() for one in found], **counted(found)}
    lines = [f"{one.mark or '-':<5} {one.image}  {one.prompt}" for one in found]
    good, bad, both = report["good"], report["bad"], report["pairs"]
    tell(args, report, [*lines, f"{good} good, {bad} bad; {both} prompts have both"])
