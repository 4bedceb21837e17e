"""From a command line to a configuration and the folder to run it in."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dreambooth_core.compat.dialects import dialects_of, infer
from dreambooth_core.compat.draft import Draft
from dreambooth_core.compat.flags import BY_NAME, FLAGS, Flag, flags_of
from dreambooth_core.compat.machine import Machine
from dreambooth_core.config.loading import validate
from dreambooth_core.config.suggest import nearest
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.options import TrainConfig

LEAST_PRODIGY_RATE = 0.01
"""Below it Prodigy, whose learning rate is a factor, would learn next to nothing."""


def translate(script: str, argv: Sequence[str], machine: Machine | None = None) -> Draft:
    """Makes a configuration out of a training script's command line.

    Raises:
        UserError: an unknown flag, a missing or a wrong value.
        Unsupported: flags that are refused; names each with the reason.
    """
    given = read_flags(script, argv)
    dialect, telling = infer(script, given)
    _refuse(given)
    values = {**dialect.defaults, **given}
    draft = Draft(dialect, telling, values, frozenset(given), machine or Machine())
    for name in sorted(given.keys() - dialect.defaults.keys()):
        other = next(each for each in dialects_of(script) if name in each.defaults)
        draft.notes.append(f"--{name}: a flag of {other.whose} dialect, taken all the same")
    for key, value in dialect.fixed.items():
        draft.set(key, value)
    for flag in FLAGS:
        _apply(flag, draft)
    _finish(draft)
    _validate(draft.config)
    return draft


def _validate(config: TrainConfig) -> None:
    """Raises ``UserError`` for a value out of range, by the name of its flag."""
    try:
        validate(config)
    except UserError as error:
        key, _, what = error.what.partition(": ")
        names = [f"--{f.name}" for f in FLAGS if key in f.key.split(", ")]
        raise UserError(what or key, where=" or ".join(names) or key, do=error.do) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, where=self.prog)


def read_flags(script: str, argv: Sequence[str], flags: Sequence[Flag] = ()) -> dict[str, Any]:
    """The flags of a command line with their values; by default those that the script has.

    Raises:
        UserError: one is unknown (names the nearest), or its value is missing or wrong.
    """
    flags = flags or flags_of(script)
    parser = _Parser(script, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in flags:
        parser.add_argument(f"--{flag.name}", **_argparse(flag))
    found, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise _unknown(script, unknown, [flag.name for flag in flags])
    return vars(found)


def _argparse(flag: Flag) -> dict[str, Any]:
    if flag.kind == "switch":
        return {"action": "store_true"}
    types: dict[str, Any] = {"int": int, "float": float, "truth": _truth}
    found: dict[str, Any] = {"type": types.get(flag.kind, str)}
    if flag.choices:
        found["choices"] = flag.choices
    if flag.kind == "texts":
        found["nargs"] = "+"
    return found


def _truth(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def _unknown(script: str, unknown: Sequence[str], known: Sequence[str]) -> UserError:
    named = [token.split("=")[0] for token in unknown if token.startswith("--")]
    if not named:
        return UserError(f"{unknown[0]!r} belongs to no flag", where=script)
    near = nearest(named[0].strip("-"), known)
    elsewhere = named[0].strip("-") in BY_NAME
    do = f"Did you mean --{near}?" if near else "`docs/compat.md` lists all."
    if elsewhere:
        do = "Other scripts have it; `docs/compat.md` says which."
    return UserError(f"{', '.join(named)}: not a flag of {script}", do=do)


def _refuse(given: dict[str, Any]) -> None:
    refused = [
        f"--{name}: {BY_NAME[name].refused}"
        for name, value in given.items()
        if BY_NAME[name].refused and value not in BY_NAME[name].harmless
    ]
    if refused:
        raise Unsupported("; ".join(refused), do="Leave it out.")


def _apply(flag: Flag, draft: Draft) -> None:
    value = draft.values.get(flag.name)
    if flag.name not in draft.values or value is None or flag.refused or flag.cross:
        return
    if flag.act:
        flag.act(draft, value)
    elif flag.key:
        draft.set(flag.key, flag.either[not value] if flag.either else value)
    else:
        draft.note(flag.name, flag.how)


def _finish(draft: Draft) -> None:
    """What depends on several flags, or on what is no flag."""
    config, values = draft.config, draft.values
    wanted = ["pretrained_model_name_or_path"]
    if not values.get("concepts_list"):
        wanted += ["instance_data_dir", "instance_prompt"]
        wanted += ["class_prompt"] * values["with_prior_preservation"]
    require(values, wanted)
    if values["seed"] is not None:
        config.run.seed = config.validation.seed = values["seed"]
    if draft.machine.forced_cpu:
        config.run.device = "cpu"
    launched = draft.machine.launched_precision
    if "mixed_precision" in draft.dialect.defaults and not values["mixed_precision"] and launched:
        values["mixed_precision"] = launched
        _apply(BY_NAME["mixed_precision"], draft)
    _absolute(config)
    _schedule(draft)
    _prodigy(draft)
    _length(draft)
    every = values.get("checkpointing_steps")
    if every and config.run.steps is not None and config.run.steps % every == 0:
        config.save.at_end = True  # there the last step is one like the others
    if not config.validation.prompts:
        config.validation.every_steps = None
    output = Path(values["output_dir"]).expanduser().absolute()
    draft.folder = output / draft.dialect.run_folder
    config.run.output, config.run.name = str(draft.folder.parent), draft.folder.name
    config.prior.folder = str(draft.folder / "class_images")
    if not config.prior.enabled and "class_data_dir" in draft.given:
        draft.note("class_data_dir", "not used without --with_prior_preservation, as there")


def _absolute(config: TrainConfig) -> None:
    """Relative paths would be taken from the run's folder, where the configuration will lie."""
    if Path(config.base.model).expanduser().exists():
        config.base.model = str(Path(config.base.model).expanduser().absolute())
    for concept in config.concepts:
        concept.images = str(Path(concept.images).expanduser().absolute())
        if concept.class_images:
            concept.class_images = str(Path(concept.class_images).expanduser().absolute())


def require(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ``UserError`` for what a script cannot do without."""
    if missing := [f"--{name}" for name in names if not values.get(name)]:
        raise UserError(f"{', '.join(missing)} must be given")


def _schedule(draft: Draft) -> None:
    config, values = draft.config, draft.values
    name = config.optim.lr_scheduler
    if name in ("constant", "piecewise_constant"):
        if values["lr_warmup_steps"]:
            draft.note("lr_warmup_steps", f"nothing with --lr_scheduler {name}, as there")
    else:
        config.optim.lr_warmup_steps = values["lr_warmup_steps"]
    if name == "cosine_with_restarts":
        config.optim.lr_num_cycles = float(values.get("lr_num_cycles") or 1)
    elif values.get("lr_num_cycles") not in (None, 1):
        draft.note("lr_num_cycles", "nothing without cosine_with_restarts, as there")


def _prodigy(draft: Draft) -> None:
    """Prodigy finds one learning rate for all; the flags' is a factor."""
    optim = draft.config.optim
    if optim.optimizer != "prodigy":
        return
    draft.note("text_encoder_lr", "Prodigy finds one rate for all, as there")
    optim.text_encoder_lr = None
    if optim.learning_rate is not None and optim.learning_rate < LEAST_PRODIGY_RATE:
        draft.warn("learning_rate", f"{optim.learning_rate:g} is too little for Prodigy; 1 instead")
        optim.learning_rate = 1.0


def _length(draft: Draft) -> None:
    """Steps from epochs as the scripts count them: class images make an epoch longer."""
    config, values = draft.config, draft.values
    watch = values.get("validation_epochs") if config.validation.prompts else None
    if config.run.steps is not None and not watch:
        config.run.epochs = values["num_train_epochs"]
        return
    images = sum(
        len(take_stock(concept.images, subfolders=False).taken) * concept.repeats
        for concept in config.concepts
    )
    if config.prior.enabled:
        classes = [c.num_class_images or config.prior.num_class_images for c in config.concepts]
        images = max(images, sum(classes))
    batches = math.ceil(images / (config.run.batch_size * draft.machine.processes))
    steps = math.ceil(batches / config.run.gradient_accumulation_steps)
    config.run.epochs = values["num_train_epochs"]
    if config.run.steps is None:
        config.run.steps = steps * values["num_train_epochs"]
    if watch:
        config.validation.every_steps = steps * watch
