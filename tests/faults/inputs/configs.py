"""Configurations that cannot be meant: every option with values of another type or out of every
range, files that are no configuration, and settings that exclude each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dreambooth_core.config.shapes import Member, members
from dreambooth_core.options import TrainConfig
from tests.faults.case import Case, Expected
from tests.faults.inputs._images import draw

COMMANDS = ("check", "train", "estimate")

WRONG: dict[str, tuple[str, ...]] = {
    "bool": ("maybe", "2", "[true]", "{a: true}", ""),
    "int": ("nan", "inf", "1e999", "-1e30", "99999999999999999999", "1.5", "x", "0x10", "[1]", ""),
    "float": ("nan", "-inf", "1e999", "-1e30", "1e30", "x", "1,5", "[1.5]", "{a: 1}", ""),
    "str": ("a\0b", "\x1b[31mred", "x" * 1_000_000, "${oc.env:HOME}"),
    "list": ("text", "{a: 1}", "[[a]]", f"[{', '.join('a' * 100_000)}]"),
    "dict": ("text", "[a]", "{a: [b]}"),
}
"""By the type of an option, what it cannot be. An empty text is none where null is a value."""


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _values()
    yield from _files()
    yield from _settings()
    yield from _presets()


def options(schema: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Member]]:
    """Every option that is no section, by its dotted key."""
    for name, member in members(schema).items():
        if member.shape.kind == "section" and member.shape.schema:
            yield from options(member.shape.schema, f"{prefix}{name}.")
        elif member.shape.item is not None and member.shape.item.schema:
            yield from options(member.shape.item.schema, f"{prefix}{name}[0].")
        else:
            yield f"{prefix}{name}", member


def _values() -> Iterator[Case]:
    number = 0
    for key, member in options():
        wrong = WRONG[member.shape.kind]
        if member.info.choices is not None:
            wrong = (*wrong[:2], "no-such-word", "")
        for text in wrong:
            if text == "" and member.shape.kind == "str" and member.info.choices is None:
                continue
            if text == "x" * 1_000_000 and member.info.choices is None and number % 7:
                text = "x" * 20_000  # a megabyte for some of them is enough
            command, number = COMMANDS[number % 3], number + 1

            def override(
                _: Path, command: str = command, key: str = key, text: str = text
            ) -> Sequence[str]:
                return [command, *CONCEPT(key), f"{key}={text}"]

            if "\0" in text:  # no command line can hold it
                continue
            yield Case("configs", f"{command} {key}={text[:20]!r} ({len(text)})", override)


def CONCEPT(key: str) -> list[str]:
    """What makes room for the fields of a concept."""
    return ["concepts=[{images: none}]"] if key.startswith("concepts[0]") else []


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

FILES: dict[str, bytes] = {
    "an alias bomb": BOMB.encode(),
    "an alias bomb in concepts": b"concepts: &a [*a, *a]\n",
    "an alias to itself": b"run: &a {presets: *a}\n",
    "an unknown alias": b"run: *none\n",
    "a key twice": b"run:\n  steps: 1\n  steps: 2\n",
    "a section twice": b"run: {steps: 1}\nrun: {steps: 2}\n",
    "a merge key": b"run: {<<: {steps: 1}}\n",
    "a tab": b"run:\n\tsteps: 1\n",
    "latin-1": "run: {name: caf\xe9}\n".encode("latin-1"),
    "utf-16": "run: {name: a}\n".encode("utf-16"),
    "NUL": b"run: {name: a\0b}\n",
    "an escaped NUL": b'run: {name: "a\\0b"}\n',
    "a lone surrogate": b'run: {name: "a\\ud800"}\n',
    "escape codes": b'run: {name: "\\e[31mred"}\n',
    "deep lists": b"concepts: " + b"[" * 50_000,
    "deep lists, closed": b"concepts: " + b"[" * 5_000 + b"]" * 5_000,
    "deep mappings": b"{a: " * 5_000 + b"}" * 5_000,
    "a list": b"[1, 2]\n",
    "a number": b"17\n",
    "two documents": b"run: {steps: 1}\n---\nrun: {steps: 2}\n",
    "a python object": b"run: !!python/object/apply:os.system [id]\n",
    "a tag": b"run: !x {steps: 1}\n",
    "binary": bytes(range(256)) * 64,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "twenty megabytes": b"# " + b"x" * 20_000_000,
    "a megabyte of keys": b"".join(b"key%d: 1\n" % n for n in range(80_000)),
    "a key of a megabyte": b"x" * 1_000_000 + b": 1\n",
    "a text of a megabyte": b"run: {name: " + b"x" * 1_000_000 + b"}\n",
    "100,000 concepts": b"concepts:\n" + b"- {images: a}\n" * 100_000,
    "10,000 concepts": b"concepts:\n" + b"- {images: a}\n" * 10_000,
    "100,000 prompts": b"validation: {prompts: [" + b"a, " * 100_000 + b"]}\n",
    "10,000 presets": b"run: {presets: {"
    + b", ".join(b"p%d: a" % n for n in range(10_000))
    + b"}}\n",
    "an unknown key": b"run: {stepz: 3}\n",
    "an unknown section": b"runn: {steps: 3}\n",
    "a key that is a list": b"? [a, b]\n: 1\n",
    "a key that is null": b"run: {null: 1}\n",
    "an interpolation": b"run: {name: '${oc.env:HOME}'}\n",
    "an open quote": b"run: {name: 'a}\n",
    "an open brace": b"run: {steps: 3\n",
    "JSON cut off": b'{"run": {"steps": 3',
    "JSON with NaN": b'{"optim": {"learning_rate": NaN}}',
    "JSON with Infinity": b'{"optim": {"learning_rate": Infinity}}',
    "a byte order mark in the middle": "run: {name: a}\n\ufeffdata: {}\n".encode(),
}


def _files() -> Iterator[Case]:
    for command in (*COMMANDS, "preset"):
        for what, content in FILES.items():
            yield Case("configs", f"{command}: {what}", _file(command, content))
        for what, make in ODD.items():
            yield Case("configs", f"{command}: {what}", _odd(command, make))


def _named(command: str, file: str) -> list[str]:
    return ["check", "--preset", file] if command == "preset" else [command, file]


def _file(command: str, content: bytes) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        (folder / "c.yaml").write_bytes(content)
        return _named(command, "c.yaml")

    return make


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _forbidden(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": _fifo,
    "a folder": Path.mkdir,
    "a link to itself": _loop,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/full": lambda path: path.symlink_to("/dev/full"),
    "a link to a process's memory": _forbidden,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: None,
}


def _odd(command: str, write: Callable[[Path], object]) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        write(folder / "c.yaml")
        return _named(command, "c.yaml")

    return make


GOOD = ("run.device=cpu", "data.resolution=64", "run.steps=1", "log.tensorboard=false")

TOGETHER: dict[str, tuple[str, ...]] = {
    "nothing trained": ("method.train_denoiser=false",),
    "timesteps turned round": ("objective.min_timestep=9", "objective.max_timestep=1"),
    "no step rules": ("optim.lr_scheduler=piecewise_constant",),
    **{
        f"step rules {rules}": (
            "optim.lr_scheduler=piecewise_constant",
            f"optim.step_rules={rules}",
        )
        for rules in ("1:10", "1:-3,1", "nan:3,1", "1:3,inf", "a:b,c", ",", "1:1e99,1", "1:2:3,4")
    },
    **{
        f"arguments {given[:20]}": (f"optim.optimizer_args={given}",)
        for given in (
            "{lr: 1}",
            "{amsgard: 1}",
            "{amsgrad: [1, 2]}",
            "{maximize: '{}'}",
            "{capturable: x}",
            "{params: 1}",
            "{foreach: 1}",
            "{differentiable: x}",
            "{kwargs: 1}",
            "{'': 1}",
        )
    },
    "fp16 on a CPU": ("run.mixed_precision=fp16",),
    "Prodigy and a small rate": ("optim.optimizer=prodigy", "optim.learning_rate=1e-4"),
    "a beta that SGD lacks": ("optim.optimizer=sgd", "optim.beta2=0.9"),
    "warm-up with constant": ("optim.lr_warmup_steps=3",),
    "a full fine-tune in 4 bits": ("method.kind=full", "memory.quantize=nf4"),
    "fused with accumulation": (
        "optim.fused_backward_pass=true",
        "optim.max_grad_norm=0",
        "run.gradient_accumulation_steps=2",
    ),
    "rounding in fp32": ("optim.stochastic_rounding=true",),
    "a layout without a place": ("method.kind=oft", "save.layout=peft"),
    "an arrangement without a place": ("method.kind=pivotal", "save.arrangement=shivam"),
    **{
        f"a saved step {text!r}": (f"run.resume={text}",)
        for text in ("/etc", "../x", "-1", "1.5", "last", "step-", "²", "a" * 5000)
    },
    **{
        f"a device {text!r}": (f"run.device={text}",)
        for text in (
            "cuda:99",
            "cpu:x",
            "tpu",
            ":",
            "cuda:-1",
            "cuda:",
            "mps:1",
            "x" * 5000,
            "[/red]",
        )
    },
    "no class prompt": ("prior.enabled=true", "concepts[0].class_prompt="),
    "an unknown scheduler": ("prior.enabled=true", "prior.scheduler=fast"),
    "class images in the folder of the subject": (
        "prior.enabled=true",
        "concepts[0].class_images=images",
    ),
    "captions asked for and absent": ("data.captions=files",),
    "no prompt": ("concepts[0].instance_prompt=",),
    "a resolution between the latents": ("data.resolution=100",),
    "a bucket step between the latents": ("data.bucket_reso_steps=12",),
    "a bucket step above the resolution": ("data.bucket_reso_steps=512",),
    "publishing without a licence": ("publish.repository=me/it",),
    **{
        f"a base {text!r}": (f"base.model={text}",)
        for text in (
            "",
            ".",
            "..",
            "/",
            "/dev/zero",
            "/proc",
            "nowhere",
            "~nobody",
            "a/b/c",
            "x" * 5000,
        )
    },
    "a token in no caption": ("method.kind=textual_inversion", "method.placeholder_token=xyzzy"),
    "a token of two words": ("method.kind=textual_inversion", "method.placeholder_token=two words"),
    "a token in the vocabulary": ("method.kind=pivotal", "method.placeholder_token=photo"),
    "no token": ("method.kind=pivotal", "method.placeholder_token="),
    "zero terminal SNR": ("objective.zero_terminal_snr=true",),
    "validation images between the latents": ("validation.prompts=[a]", "validation.size=60"),
    "wandb": ("log.wandb=true",),
    "an optimizer that is not there": ("optim.optimizer=dadapt_adam", "optim.learning_rate=1"),
    "xformers": ("memory.attention=xformers",),
}

CONTROLS: dict[str, tuple[str, ...]] = {
    "nothing special": (),
    "markup in a prompt": ("concepts[0].instance_prompt=a [/red] sks dog [bold]",),
    "markup in a name": ("run.name=a [/red] name",),
    "every precision": ("run.mixed_precision=bf16",),
    "a first timestep that is the last": (
        "objective.min_timestep=5",
        "objective.max_timestep=5",
    ),
    "rules": ("optim.lr_scheduler=piecewise_constant", "optim.step_rules=1:10,0.5"),
}


def settings(folder: Path, command: str, given: Sequence[str]) -> list[str]:
    """A command line for a good folder of images, with these settings over good ones."""
    draw(folder / "images")
    concept = "concepts=[{images: images, instance_prompt: a photo of sks dog, class_prompt: dog}]"
    return [command, *GOOD, concept, *given]


def _settings() -> Iterator[Case]:
    for command in ("check", "train"):
        for what, given in TOGETHER.items():
            yield Case("settings", f"{command}: {what}", _together(command, given))
    for what, given in CONTROLS.items():
        yield Case("settings", f"check: {what}", _together("check", given), expected="accepted")


def _together(command: str, given: Sequence[str]) -> Callable[[Path], Sequence[str]]:
    return lambda folder: settings(folder, command, given)


def _presets() -> Iterator[Case]:
    names = (
        "nothing",
        "../../x",
        "/etc/passwd",
        "0gb-lora-sd1",
        "[/red]",
        "",
        ".",
    )
    for name in (*names, "x" * 5000, "person-lora-sd9", "1" * 5000 + "gb-lora-sd1"):
        for line in (["presets", name], ["check", "--values", "--preset", name]):
            yield Case("presets", f"{line[0]} {name[:20]!r}", _line(line))
    good: tuple[tuple[list[str], Expected], ...] = (
        (["presets"], "accepted"),
        (["presets", "person-lora-sd1"], "accepted"),
        (["check", "--values", "--preset", "person-lora-sd1", "--preset", "8gb"], "accepted"),
    )
    for line, expected in good:
        yield Case("presets", " ".join(line), _line(line), expected)


def _line(line: Sequence[str]) -> Callable[[Path], Sequence[str]]:
    return lambda _: line
