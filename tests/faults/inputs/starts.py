"""What a run begins from or trains beside: damaged adapters, patterns of layers that never end,
shares of memory that are none, files of a base that do not belong together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.faults.case import Case, Expected
from tests.faults.inputs._adapters import NAMES, Tensors, adapter, base, lora, tails, write
from tests.faults.inputs._images import draw
from tests.faults.inputs.adapters import ALPHAS, SHAPES, TYPES, VALUES

OPTIONS = ("method.init_from", "method.training_adapter")
COMMANDS = ("check", "train", "estimate")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _tensors()
    yield from _places()
    yield from _numbers()
    yield from _layers()
    yield from _streams()
    yield from _parts()


def _case(
    name: str,
    change: Callable[[Path], dict[str, Any]],
    *,
    command: str = "check",
    expected: Expected = "refused",
) -> Case:
    """A command on a good base and two images; ``change`` gives the options that are wrong."""

    def make(place: Path) -> Sequence[str]:
        draw(place / "images", 2)
        options = {"base.model": base(place), "run.steps": 1, "save.at_end": "false"} | change(
            place
        )
        concept = "{images: images, instance_prompt: a photo of sks dog}"
        given = [f"{key}={value}" for key, value in options.items()]
        plain = ["data.resolution=64", "data.crop=center", "log.tensorboard=false"]
        return [command, f"concepts=[{concept}]", *plain, *given]

    return Case("starts", f"{command}, {name}", make, expected)


# -- adapters -------------------------------------------------------------------------------------


def _file(
    name: str, option: str, tensors: Callable[[], Tensors], expected: Expected = "refused"
) -> Case:
    def change(place: Path) -> dict[str, Any]:
        return {option: write(place, tensors(), "safetensors")}

    return _case(f"{option} with {name}", change, expected=expected)


def _tensors() -> Iterator[Case]:
    for option in OPTIONS:
        yield _file("a good LoRA", option, lambda: adapter("lora"), "accepted")
        for tail, tensor in tails("lora").items():
            changes = {
                **(SHAPES if tail != "alpha" else {}),
                **(VALUES if tail != "alpha" else {}),
                **(
                    {k: lambda t, d=d: t.to(d) for k, d in TYPES.items()} if tail != "alpha" else {}
                ),
            }
            for kind, made in changes.items():
                try:
                    changed = made(tensor)
                except (RuntimeError, IndexError):
                    continue
                if kind in SHAPES and changed.shape == tensor.shape:
                    continue
                yield _file(
                    f"{tail}: {kind}", option, lambda t=tail, c=changed: adapter("lora", **{t: c})
                )
        for kind, value in ALPHAS.items():
            yield _file(f"alpha: {kind}", option, lambda v=value: adapter("lora", alpha=v))
        for tail in ("lora_down.weight", "lora_up.weight"):
            yield _file(f"no {tail}", option, lambda t=tail: adapter("lora", **{t: None}))
        yield _file("nothing", option, dict)
        yield _file("a bias", option, lambda: adapter("lora", diff_b=torch.ones(32)))
        for key in (
            "lora_unet_roof_0_to_q",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "\x1b[",
        ):
            yield _file(
                f"a module {key!r}",
                option,
                lambda k=key: {f"{k}.{tail}": t for tail, t in tails("lora").items()},
            )
        yield _file(
            "rank 60,000",
            option,
            lambda: {
                f"{NAMES[0]}.lora_down.weight": torch.ones(60_000, 32),
                f"{NAMES[0]}.lora_up.weight": torch.ones(32, 60_000),
            },
            "either",
        )
        yield _file(
            "numbers that overflow",
            option,
            lambda: {k: t if k.endswith("alpha") else t * 3e37 for k, t in lora().items()},
        )
        for method in ("locon", "tucker", "dora", "loha", "lokr", "oft", "diff"):
            # A start is whatever the method can hold; beside the base only a plain LoRA stands.
            expected: Expected = "either" if option == OPTIONS[0] else "refused"
            yield _file(f"a {method}", option, lambda m=method: adapter(m), expected)


def _places() -> Iterator[Case]:
    def piped(place: Path) -> str:
        os.mkfifo(place / "pipe.safetensors")
        return "pipe.safetensors"

    places: dict[str, Callable[[Path], str]] = {
        "a pipe": piped,
        "gone": lambda _: "gone.safetensors",
        "a folder": lambda _: "images",
        "an image": lambda _: "images/0.png",
        "a device": lambda _: "/dev/zero",
        "memory": lambda _: "/proc/self/mem",
        "a folder of the system": lambda _: "/proc",
        "a base": lambda place: str(base(place)),
        "a name of 5,000 letters": lambda _: "x" * 5000,
        "a name of the hub": lambda _: "someone/something",
        "a variable": lambda _: "$HOME/a.safetensors",
    }
    for option in OPTIONS:
        for kind, where in places.items():
            for command in COMMANDS[:2]:
                yield _case(
                    f"{option} that is {kind}",
                    lambda place, o=option, w=where: {o: w(place)},
                    command=command,
                )


def _numbers() -> Iterator[Case]:
    good = "a.safetensors"
    for value in ("nan", "inf", "-11", "1e999", "x", "[1]"):

        def change(place: Path, value: str = value) -> dict[str, Any]:
            write(place, lora(), "safetensors")
            return {"method.init_from": good, "method.init_weight": value}

        yield _case(f"method.init_weight={value}", change)
    for kind, more in {
        "a whole model": {"method.kind": "full"},
        "an embedding": {"method.kind": "textual_inversion"},
        "OFT": {"method.kind": "oft"},
        "too small a rank": {"method.rank": 1},
        "no denoiser": {"method.train_denoiser": "false", "method.train_text_encoder": "true"},
    }.items():
        for option in OPTIONS:

            def combined(
                place: Path, option: str = option, more: dict[str, Any] = more
            ) -> dict[str, Any]:
                write(place, lora(), "safetensors")
                return {option: good, **more}

            whole = (kind, option) == ("a whole model", OPTIONS[0])
            beside = kind in ("too small a rank", "OFT") and option == OPTIONS[1]
            expected: Expected = "either" if whole or beside else "refused"
            yield _case(f"{option} and {kind}", combined, expected=expected)


# -- options --------------------------------------------------------------------------------------

PATTERNS = {
    "no expression": "(",
    "nothing that is there": "nothing_is_named_so",
    "an empty list": ",",
    "nested repetitions": "(.*)*to_q!",
    "repeated alternatives": "(([a-z0-9._])+)+!",
    "a polynomial": ".*" * 30 + "!",
    "a number of repetitions": "(a{1,60000}){1,60000}",
    "4,000 alternatives": "(" + "a|" * 4_000 + "b)!",
    "deep brackets": "(" * 4_000 + "a" + ")" * 4_000,
    "a line end": "to_q\n!",
    "markup": "[/red]",
}


def _layers() -> Iterator[Case]:
    for kind, pattern in PATTERNS.items():
        for command in COMMANDS[:2]:
            yield _case(
                f"method.target_modules: {kind}",
                lambda _, p=pattern: {"method.target_modules": p},
                command=command,
            )


def _streams() -> Iterator[Case]:
    for key, values in {
        "memory.stream": (
            "nan",
            "inf",
            "-1",
            "-0.5",
            "1.5",
            "1e999",
            "x",
            "''",
            "on",
            "[1]",
            "0x1",
        ),
        "memory.budget": (
            "nan",
            "-1GB",
            "0GB",
            "1e999GB",
            "infGB",
            "nanGB",
            "x",
            "8 parsecs",
            "GB",
        ),
        "run.stop_when": ("nan", "0", "-1", "1.5"),
        "save.best_by": ("hope",),
        "prior.source": ("luck",),
        "run.device": ("banana", "cuda:99", "meta", "cpu:-1", "mps:0"),
        "data.held_out": ("nan", "-1", "1.5", "1e999", "all", "1000000000000"),
    }.items():
        for value in values:
            for command in ("check", "train"):
                yield _case(f"{key}={value}", lambda _, k=key, v=value: {k: v}, command=command)


# -- files of a base ------------------------------------------------------------------------------


def _parts() -> Iterator[Case]:
    """A whole base beside which files are named that it has no need for, or that are none."""
    for key in ("base.vae", "base.tokenizer", "base.text_encoders"):
        for kind, where in {
            "gone": "gone.safetensors",
            "an image": "images/0.png",
            "a folder of images": "images",
            "a device": "/dev/zero",
            "a folder of the system": "/proc",
            "a pipe": "pipe",
        }.items():

            def change(place: Path, key: str = key, where: str = where) -> dict[str, Any]:
                os.mkfifo(place / "pipe")
                return {key: f"[{where}]" if key.endswith("encoders") else where}

            yield _case(f"{key} that is {kind}", change)
    for kind, value in {
        "twice the same": "[a, a]",
        "ten thousand": "[" + "a, " * 10_000 + "a]",
        "numbers": "[1, 2]",
        "an empty name": "['']",
    }.items():
        yield _case(f"base.text_encoders: {kind}", lambda _, v=value: {"base.text_encoders": v})
