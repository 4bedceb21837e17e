"""The table of flags for people: ``docs/compat.md`` and ``dreambooth compat NAME --help``.

``python -m dreambooth_core.compat.table docs/compat.md`` writes the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.compat.conversions import FLAGS as CONVERSION_FLAGS
from dreambooth_core.compat.dialects import CONVERSIONS, LATER, SCRIPTS, Dialect, dialects_of
from dreambooth_core.compat.flags import FLAGS, Flag, flags_of

INTRODUCTION = """\
# The command lines that tutorials name

`dreambooth compat NAME …` takes the flags of the training and conversion scripts of diffusers,
ShivamShrirao's fork, peft and ppdiffusers. With several processes:
`accelerate launch -m dreambooth_core.compat NAME …`.

    dreambooth compat train_dreambooth \\
      --pretrained_model_name_or_path=pocket --instance_data_dir=dog \\
      --instance_prompt="a photo of sks dog" --output_dir=out --max_train_steps=400

`--dry-run` among the flags prints the configuration that they make and trains nothing: a way from
a tutorial to a configuration of your own.

**Dialects.** `train_dreambooth` exists in four projects that share most flags but not all
defaults. The flags tell which is meant: the dialect that has most of them, diffusers' if that
leaves several. It is printed, and its defaults apply.

**Results** lie where code written for that script looks for them:

| dialect | what lies where |
| --- | --- |
| diffusers, ppdiffusers | a pipeline in `<out>`; `<out>/checkpoint-100/unet` and `/text_encoder`; of LoRA `pytorch_lora_weights.safetensors` in both places |
| peft | with `--use_lora` `<out>/unet/adapter_config.json` and `<out>/text_encoder/…`; without it a pipeline |
| shivam | a pipeline and its `samples/` in `<out>/<step>/`; what the run keeps for itself in `<out>/0` |

The output folder is also the run's folder (Shivam's: `<out>/0`): `dreambooth runs` shows it, and
`dreambooth train --resume <out>` resumes it. Starting anew in the same folder sets the
records of the earlier run aside.

**What this machine cannot do** is replaced, with a warning: fp16 on a CPU by fp32, xformers by
another memory-efficient attention, 8-bit Adam by AdamW, VisualDL (and Weights & Biases
where it is not installed) by TensorBoard. A configuration of your own gets an error instead. Flax is not
used, and TPUs are not supported.

**The hub.** `--push_to_hub` publishes the result with a model card, in a private repository, when
two flags of our own say what publishing needs: `--hub_licence` (the hub's name of a licence) and
`--hub_consent` (who agreed, or that nobody had to). Without them the run says how to upload by
hand. `--hub_token` and `--wandb_key` are for this process alone and written nowhere.

"Refused" flags end the command with the reason. Flags marked "nothing" are accepted, have no
meaning here, and say so. A column holds the dialect's default; – is a flag that it does not have,
and that it accepts all the same where another dialect of the script has it.
"""  # noqa: E501

LATER_INTRODUCTION = f"""\
{", ".join(f"`{dialect.script}`" for dialect in LATER)}.

The layers that get an adapter are those of the script. Text encoders of rectified-flow models are
not trained: `--train_text_encoder` ends with that reason. `--train_text_encoder_ti` of the SD 1.5 and
SDXL scripts learns `--token_abstraction` itself, which stays in the prompts, to the end of the run.
What is in the last column's scripts alone, or has another default there, says so.
"""  # noqa: E501

FOOTER = "<!-- Written by python -m dreambooth_core.compat.table docs/compat.md -->"


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    later = [dialect.script for dialect in LATER]
    for script in SCRIPTS:
        if script not in later:
            parts += [f"## {script}", training_table(script)]
    parts += ["## diffusers' later scripts", LATER_INTRODUCTION, later_table()]
    for script in CONVERSIONS:
        parts += [f"## {script}", conversion_table(script)]
    return "\n\n".join([*(part.strip() for part in parts), FOOTER]) + "\n"


def training_table(script: str) -> str:
    """The flags of a training script with their defaults in each dialect."""
    dialects = dialects_of(script)
    head = ["flag", "becomes", *(dialect.name for dialect in dialects)]
    rows = [
        [f"`--{flag.name}`", becomes(flag), *(_default(d, flag.name) for d in dialects)]
        for flag in flags_of(script)
    ]
    return _table(head, rows)


def later_table() -> str:
    """The flags of the later scripts, which share most of them and of their defaults."""
    rows = []
    for flag in FLAGS:
        having = [dialect for dialect in LATER if flag.name in dialect.defaults]
        if not having:
            continue
        defaults = [_default(dialect, flag.name) or "none" for dialect in having]
        usual = max(dict.fromkeys(defaults), key=defaults.count)
        names = [_short(dialect) for dialect in having]
        scripts = "all" if len(having) == len(LATER) else ", ".join(names)
        other = [
            f"{name}: {default}"
            for name, default in zip(names, defaults, strict=True)
            if default != usual
        ]
        rows.append([f"`--{flag.name}`", becomes(flag), "; ".join([usual, *other]), scripts])
    return _table(["flag", "becomes", "default", "scripts"], rows)


def _short(dialect: Dialect) -> str:
    name = dialect.script.removeprefix("train_dreambooth_")
    return name.removeprefix("lora_") if name.startswith("lora_") else f"{name} (full)"


def conversion_table(script: str) -> str:
    """The flags of a conversion script and what ``dreambooth convert`` calls them."""
    return _table(
        ["flag", "becomes in `dreambooth convert`"],
        [[f"`--{flag.name}`", becomes(flag)] for flag in CONVERSION_FLAGS[script]],
    )


def becomes(flag: Flag) -> str:
    """What a flag does, in a few words."""
    if flag.refused:
        but = f"; {', '.join(map(str, flag.harmless))} may stand" if flag.harmless else ""
        return f"refused: {flag.refused}{but}"
    keys = ", ".join(f"`{key}`" for key in flag.key.split(", ")) if flag.key else ""
    if flag.verdict == "nothing":
        return f"nothing: {flag.how}"
    return ": ".join(part for part in (keys, flag.told) if part)


def usage(script: str) -> str:
    """The flags of a script in plain text, for ``--help``."""
    flags = CONVERSION_FLAGS.get(script) or flags_of(script)
    width = max(len(flag.name) for flag in flags)
    lines = [f"  --{flag.name:<{width}}  {becomes(flag).replace('`', '')}" for flag in flags]
    return "\n".join([f"usage: dreambooth compat {script} --flags …", "", *lines]) + "\n"


def _default(dialect: Dialect, name: str) -> str:
    if name not in dialect.defaults:
        return "–"
    value: Any = dialect.defaults[name]
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str]) -> int:
    """Writes the page into the file that is named."""
    from dreambooth_core.disk import write_text

    write_text(Path(argv[0]), page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
