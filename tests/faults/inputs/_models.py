"""Good bases of every family in both layouts, for generators to spoil, and commands that read one.

A template is written once for all cases and linked into each case's folder, so that a case costs
what its damage costs. A damage must therefore replace a file, never write into it: that is what
:func:`replace` is for.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.faults.case import Case, Expected

FAMILIES = ("sd1", "sd2", "sdxl")
PARTS: dict[str, tuple[str, ...]] = {
    "sd1": ("unet", "vae", "text_encoder"),
    "sd2": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
STORE = Path(tempfile.gettempdir()) / f"faults-models-{os.getpid()}"
"""Named at import by the process that all cases are forked from, so that they share it."""

LAYER = {
    "sd1": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 32),
    "sd2": ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 32),
    "sdxl": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", 64),
}
"""A layer of each family's template that an adapter can change, and its width."""

Damage = Callable[[Path], None]
"""Spoils the base at a path; the base is the case's own."""


@atexit.register
def _clean(owner: int = os.getpid()) -> None:
    if os.getpid() == owner:
        shutil.rmtree(STORE, ignore_errors=True)


def template(family: str, layout: str, seed: int = 0) -> Path:
    """A good base: ``folder``, ``safetensors`` or ``ckpt``; with another seed another UNet."""
    name = f"{family}-{layout}-{seed}"
    made = STORE / name / ("base" if layout == "folder" else f"base.{layout}")
    if made.exists():
        return made
    from dreambooth_core.families.stable_diffusion.folder import write_folder
    from dreambooth_core.families.stable_diffusion.single_write import write_single_file

    STORE.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=STORE))
    parts = _parts(family, seed)
    if layout == "folder":
        write_folder(parts, place / made.name)
    else:
        write_single_file(parts, place / made.name)
    try:
        place.rename(STORE / name)
    except OSError:  # another case was faster
        shutil.rmtree(place)
    return made


def _parts(family: str, seed: int) -> Any:
    from dreambooth_core.families.stable_diffusion import vae
    from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
    from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
    from tests.helpers.reduced_models import random_tensors, reduced_configs, unet_of

    configs = reduced_configs(family)
    if family != "sdxl":
        configs["unet"] = unet_of(family, (32, 64), blocks=1)
    else:
        configs["unet"] = unet_of(family, (32, 64, 64), blocks=1, context=96, pooled=64)
    plan = vae.VAEPlan((32, 32, 32, 32), 1, 4, 3, 3, True)
    configs["vae"] = vae.config_from_plan(plan, scaling=vae.SCALING[family], sample_size=64)
    components = {
        name: Component(
            config,
            random_tensors(name, config, seed=seed if name == "unet" else 7, dtype=torch.float16),
        )
        for name, config in configs.items()
    }
    return ModelParts(family, components, default_scheduler(family, "epsilon"))


def put(folder: Path, family: str, layout: str, name: str = "base", seed: int = 0) -> Path:
    """Links a template into a case's folder and returns where."""
    source = template(family, layout, seed)
    for file in source.parent.rglob("*"):
        if file.is_file():
            inside = file.relative_to(source.parent)
            first = inside.parts[0].replace("base", name, 1)
            target = folder.joinpath(first, *inside.parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    return folder / source.name.replace("base", name, 1)


def replace(file: Path, content: bytes | str | None) -> None:
    """Gives a file new content, or takes it away; what it was linked to stays as it is."""
    file.unlink(missing_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content, encoding="utf-8")


def weights_of(base: Path, part: str) -> Path:
    """The file with a part's weights."""
    if base.is_file():
        return base
    stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
    return base / part / f"{stem}.safetensors"


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON object in a file."""
    value = json.loads(file.read_text("utf-8"))
    change(value)
    replace(file, json.dumps(value))


def set_key(inside: str, key: str, value: Any) -> Damage:
    """Sets a key of a JSON file in a folder; ``...`` takes it away."""

    def change(config: dict[str, Any]) -> None:
        if value is ...:
            config.pop(key, None)
        else:
            config[key] = value

    return lambda base: edit_json(base / inside, change)


def edit_tensors(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the tensors of a safetensors file or of a pickle, its metadata as they were."""
    if file.suffix == ".ckpt":
        held = torch.load(file, weights_only=True)
        change(held["state_dict"])
        file.unlink()
        torch.save(held, file)
        return
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    change(tensors)
    file.unlink()
    save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata)


# The arguments of each command on a base. ``{good}`` is another base of the same family.


def arguments(command: str, folder: Path, family: str, layout: str, base: str) -> list[str]:
    """The command line of ``command`` on ``base``; writes what else it needs."""
    data = [
        f"base.model={base}",
        "concepts=[{images: images, instance_prompt: a photo of sks ball}]",
        "data.resolution=64",
    ]
    if command in ("check", "train", "train text"):
        from PIL import Image

        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "teal").save(folder / "images" / "ball.png")
    if command == "bake":
        layer, width = LAYER[family]
        lora = {
            f"{layer}.lora_down.weight": torch.ones(2, width),
            f"{layer}.lora_up.weight": torch.ones(width, 2),
        }
        save_file(lora, folder / "lora.safetensors")
    if command in ("extract", "extract from"):
        put(folder, family, layout, "other", seed=1)
    other = "other" if layout == "folder" else f"other.{layout}"
    return {
        "inspect": ["inspect", base],
        "to file": ["convert", base, "out.safetensors"],
        "to ckpt": ["convert", base, "out.ckpt", "--half"],
        "to folder": ["convert", base, "out"],
        "bake": ["bake", base, "lora.safetensors", "--out", "out.safetensors"],
        "extract": ["extract", other, base, "out.safetensors", "--rank", "1"],
        "extract from": ["extract", base, other, "out.safetensors", "--rank", "1"],
        "sample": [
            "sample",
            "a ball",
            "--base",
            base,
            "--steps",
            "1",
            "--width",
            "32",
            "--height",
            "32",
        ],
        "check": ["check", *data],
        "estimate": ["estimate", *data],
        "train": ["train", *data, "run.steps=1", "method.rank=1", "log.tensorboard=false"],
        "train text": [
            "train",
            *data,
            "run.steps=1",
            "method.rank=1",
            "log.tensorboard=false",
            "method.train_text_encoder=true",
        ],
    }[command]


READING = ("to file", "to folder", "bake", "extract", "sample", "train", "extract from", "check")
"""Commands that read every weight."""
SHAPES = (*READING, "estimate", "to ckpt", "train text")
"""Commands that read every configuration and every weight's shape."""


LONG = ("train", "sample", "check")
"""Commands that take a second or more where the base is good."""


class Spread:
    """Deals the commands out to damages in turn, so that each meets every kind of damage."""

    def __init__(self, group: str, commands: Sequence[str], each: int = 2) -> None:
        self.group = group
        self.commands = commands
        self.each = each
        self._next = 0

    def cases(
        self,
        family: str,
        layout: str,
        what: str,
        damage: Damage,
        expected: Expected = "refused",
        *,
        each: int | None = None,
        commands: Sequence[str] | None = None,
    ) -> Iterator[Case]:
        """The damage under the next commands in turn."""
        known = commands or self.commands
        if expected != "refused":
            # What may be accepted is then also done: nothing that takes seconds.
            known = [c for c in known if not c.startswith(LONG)] or known
        for _ in range(each or self.each):
            command = known[self._next % len(known)]
            self._next += 1
            yield one_case(self.group, command, family, layout, what, damage, expected)


def one_case(
    group: str,
    command: str,
    family: str,
    layout: str,
    what: str,
    damage: Damage,
    expected: Expected = "refused",
) -> Case:
    """A command on a damaged base."""

    def make(folder: Path) -> list[str]:
        base = put(folder, family, layout)
        damage(base)
        return arguments(command, folder, family, layout, base.name)

    name = f"{family} {layout}: {what}: {command}"
    may_write = command.startswith("train")
    return Case(group, name, make, expected, may_write=may_write)


def controls(group: str) -> Iterator[Case]:
    """Every command on undamaged bases: all of them for one, a share for the others."""
    number = 0
    for layout in ("folder", "safetensors", "ckpt"):
        for family in FAMILIES:
            for command in (*SHAPES, "inspect"):
                number += 1
                if (layout, family) == ("folder", "sd1") or number % 4 == 0:
                    yield one_case(
                        group, command, family, layout, "control", lambda _: None, "accepted"
                    )


# What can be wrong with any small text file.

Text = bytes | str | None | Callable[[Path], None]


def _deep(_: Path | None = None) -> str:
    return '{"a": ' * 100_000 + "1" + "}" * 100_000


def _sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.write(b"{")
        opened.truncate(1 << 40)


FILES: dict[str, Text] = {
    "missing": None,
    "empty": b"",
    "one space": b" ",
    "not JSON": b"this is no JSON",
    "cut": b'{"in_channels": 4, "out_',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "a number": b"7",
    "a string": b'"config"',
    "binary": bytes(range(256)) * 8,
    "zeros": bytes(4096),
    "UTF-16": '{"in_channels": 4}'.encode("utf-16"),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "deeply nested object": _deep(),
    "deeply nested list": "[" * 100_000 + "]" * 100_000,
    "key twice": b'{"_class_name": "A", "_class_name": "B"}',
    "huge number": b'{"block_out_channels": ' + b"9" * 10_000 + b"}",
    "an HTML page": b"<!doctype html><html><body>404</body></html>",
    "a terabyte": _sparse,
    "a fifo": os.mkfifo,
    "a folder": os.mkdir,
    "a link to itself": lambda file: os.symlink(file, file),
    "a link to nothing": lambda file: os.symlink("nowhere", file),
    "a link to a device": lambda file: os.symlink("/dev/zero", file),
}


def spoil(inside: str, content: Text) -> Damage:
    """Replaces a file of a folder, or of the base itself with ``""``."""

    def damage(base: Path) -> None:
        file = base / inside if inside else base
        if callable(content):
            file.unlink(missing_ok=True)
            content(file)
        else:
            replace(file, content)

    return damage


# What can be wrong with tensors: name of the damage, and a change of one tensor.

NAN, INF = float("nan"), float("inf")


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": _with(NAN),
    "infinity": _with(INF),
    "minus infinity": _with(-INF),
    "all NaN": lambda t: torch.full_like(t, NAN),
}
DTYPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int64": lambda t: t.to(torch.int64),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t.to(torch.bool),
    "uint8": lambda t: t.abs().to(torch.uint8),
    "fp8 e4m3": lambda t: t.to(torch.float8_e4m3fn),
    "fp8 e5m2": lambda t: t.to(torch.float8_e5m2),
    "complex": lambda t: t.to(torch.complex64),
}
FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a scalar": lambda t: t.flatten()[0],
    "empty": lambda t: t[:0],
    "a row less": lambda t: t[:-1],
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "a dimension more": lambda t: t.unsqueeze(-1),
    "a dimension in front": lambda t: t.unsqueeze(0),
    "flat": lambda t: t.flatten() if t.ndim > 1 else t.view(1, -1),
    "twice as large": lambda t: torch.cat([t, t]),
    "five dimensions": lambda t: t[(...,) + (None,) * (5 - t.ndim)],
}


def change_one(
    part: str, find: Callable[[list[str]], str], change: Callable[[torch.Tensor], torch.Tensor]
) -> Damage:
    """Changes one tensor of a part; ``find`` picks its name out of all."""

    def damage(base: Path) -> None:
        def edit(tensors: dict[str, Any]) -> None:
            name = find(sorted(tensors))
            tensors[name] = change(tensors[name])

        edit_tensors(weights_of(base, part), edit)

    return damage


def remove_one(part: str, find: Callable[[list[str]], str]) -> Damage:
    """Takes one tensor away."""

    def damage(base: Path) -> None:
        def edit(tensors: dict[str, Any]) -> None:
            del tensors[find(sorted(tensors))]

        edit_tensors(weights_of(base, part), edit)

    return damage


def ending(*ends: str) -> Callable[[list[str]], str]:
    """The first name with one of these ends."""
    return partial(_ending, ends)


def _ending(ends: tuple[str, ...], names: list[str]) -> str:
    return next(name for name in names if name.endswith(ends))


def say(key: str, text: str, *, bare: bool = False) -> Damage:
    """Sets a text of the metadata; ``bare`` takes our own configurations away."""

    def damage(base: Path) -> None:
        from safetensors.torch import load_file, save_file

        from dreambooth_core.formats.storage import read_metadata

        tensors, metadata = load_file(base), read_metadata(base)
        if bare:
            metadata.pop("dreambooth.model")
        base.unlink()
        save_file(tensors, base, {**metadata, key: text})

    return damage
