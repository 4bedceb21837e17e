"""``dreambooth compat NAME --flags …``: the command lines that tutorials name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth_core.commands.options import argument
from dreambooth_core.compat.dialects import CONVERSIONS, NAMES, script_of
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from dreambooth_core.families.options import BaseOptions

EXAMPLES = """\
Of this program's own flags, --debug, --json and --dry-run (says what would be done) may stand
among the script's. Several processes: accelerate launch -m dreambooth_core.compat NAME …
"""


@dataclass(kw_only=True)
class Options:
    """What the command takes; the flags are read by the script's own table."""

    name: str = argument(positional=True, metavar="NAME", help=f"the script: {', '.join(NAMES)}")
    flags: list[str] = argument(
        factory=list, positional=True, rest=True, help="its flags; docs/compat.md"
    )


def run(args: Options) -> int:
    """Does what the script would; returns the exit code."""
    own = ("--debug", "--json", "--dry-run")
    argv = [flag for flag in args.flags if flag not in own]
    script = script_of(args.name)
    if "--help" in argv or "-h" in argv:
        from dreambooth_core.compat.table import usage

        sys.stdout.write(usage(script))
        return 0
    if script in CONVERSIONS:
        from dreambooth_core.compat.conversions import convert

        for line in convert(script, argv):
            _say(line)
        return 0
    return _train(script, argv, as_json="--json" in args.flags, dry="--dry-run" in args.flags)


def _train(script: str, argv: list[str], *, as_json: bool, dry: bool) -> int:
    from dreambooth_core.commands.train import train_here
    from dreambooth_core.compat.launch import prepare
    from dreambooth_core.compat.translate import translate
    from dreambooth_core.config.loading import dump

    translation = translate(script, argv)
    warnings = (f"warning: {warning}" for warning in translation.warnings)
    for line in (translation.headline, *translation.notes, *warnings):
        _say(line)
    if dry:
        sys.stdout.write(dump(translation.config))
        return 0
    refuse_base(script, translation.config.base)
    # In this process alone: a token is no part of what is written down.
    os.environ.update(translation.secrets)
    folder, proposal = prepare(translation, _say)
    return train_here(folder, as_json=as_json, proposal=proposal)


def refuse_base(script: str, base: BaseOptions) -> None:
    """Refuses what a script for SDXL cannot train. Raises ``UserError``."""
    from dreambooth_core.bases.locate import locate
    from dreambooth_core.families.recognition.detect import identify

    if not script.endswith("sdxl"):
        return
    path = locate(base.model, revision=base.revision, variant=base.variant)
    identity = identify(path)
    if identity.family is not None and not identity.family.startswith("sdxl"):
        raise UserError(
            f"{script} trains Stable Diffusion XL, and this is {identity.label}",
            where=f"--pretrained_model_name_or_path {base.model}",
            do=f"Use {script.removesuffix('_sdxl')}, or take an SDXL base.",
        )


def _say(line: str) -> None:
    """Tells the person something; of several processes only the first speaks."""
    if int(os.environ.get("RANK") or 0) == 0:
        sys.stderr.write(f"{line}\n")
