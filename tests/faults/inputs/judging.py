"""What is asked to judge runs, and to caption or mask images: damaged runs, lists of prompts,
models that are none, places that nothing can be written to."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Expected
from tests.faults.inputs._adapters import adapter, base, write
from tests.faults.inputs._images import draw

Change = Callable[[Path], object]
"""What is wrong, in the folder of the case."""

DEEP = "[" * 100_000


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _runs()
    yield from _prompts()
    yield from _encoders()
    yield from _judging()
    yield from _captions()


# -- runs -----------------------------------------------------------------------------------------

FEW = ("--prompts", "prompts.json", "--images", "1", "--steps", "1", "--device", "cpu")


def _evaluate(
    name: str, change: Change, *more: str, expected: Expected = "refused", run: str = "run"
) -> Case:
    """``evaluate`` of a run that was made by hand; ``change`` damages it."""

    def make(place: Path) -> Sequence[str]:
        _run(place)
        change(place)
        return ["evaluate", run, *FEW, *more]

    return Case("judging", f"evaluate, {name}", make, expected, may_write=expected == "either")


def _run(place: Path) -> None:
    """A run with a result, and two prompts."""
    folder = place / "run"
    folder.mkdir()
    draw(place / "images", 2)
    model = base(place)
    (folder / "config.yaml").write_text(
        f"base: {{model: {json.dumps(str(place / model))}}}\n"
        f"concepts: [{{images: {json.dumps(str(place / 'images'))}, instance_prompt: a ball}}]\n"
        "data: {resolution: 64, crop: center}\n"
    )
    (folder / "events.jsonl").write_text('{"time": 1.0, "kind": "started", "step": 0}\n')
    receipt = {"base": {"commit": None}, "result": {"file": "run.safetensors", "steps": 2}}
    (folder / "receipt.json").write_text(json.dumps(receipt))
    write(folder, adapter("lora"), "safetensors")
    (folder / "a.safetensors").rename(folder / "run.safetensors")
    (place / "prompts.json").write_text('["{} on white"]')


def _nothing(place: Path) -> None:
    """A good one."""


def _receipt(change: Callable[[dict[str, Any]], object]) -> Change:
    def damage(place: Path) -> None:
        file = place / "run" / "receipt.json"
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return damage


def _text(name: str, text: str | bytes | None) -> Change:
    """Other contents of a file of the case; none: it is gone."""

    def damage(place: Path) -> None:
        file = place / name
        file.unlink()
        if text is not None:
            file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def _fifo(name: str) -> Change:
    def damage(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return damage


def _leads_to(name: str, target: str) -> Change:
    def damage(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return damage


RESULTS: dict[str, Any] = {
    "a list": [1],
    "a text": "run.safetensors",
    "null": None,
    "empty": {},
    "a file that is a number": {"file": 7, "steps": 2},
    "a file that is a list": {"file": ["run.safetensors"], "steps": 2},
    "a file that is gone": {"file": "gone.safetensors", "steps": 2},
    "a file of elsewhere": {"file": "/proc/self/environ", "steps": 2},
    "a file behind dots": {"file": "../prompts.json", "steps": 2},
    "a device": {"file": "/dev/zero", "steps": 2},
    "steps that are a text": {"file": "run.safetensors", "steps": "many"},
    "steps that are a list": {"file": "run.safetensors", "steps": [2]},
    "an embedding that is gone": {"file": "run.safetensors", "embedding": "e.safetensors"},
    "an embedding without its token": {"file": "run.safetensors", "embedding": "run.safetensors"},
    "an embedding that is a number": {"file": "run.safetensors", "embedding": 7, "token": "x"},
}


def _runs() -> Iterator[Case]:
    yield _evaluate("a good run", _nothing, expected="accepted")
    for run in ("gone", "prompts.json", "images", "/proc", "/dev/zero", "/dev/null", "", "a\nb"):
        yield _evaluate(f"a run named {run!r}", _nothing, run=run)
    yield _evaluate("a run that is a pipe", _fifo("pipe"), run="pipe")
    yield _evaluate("a name of 5,000 letters", _nothing, run="x" * 5000)
    for kind, value in RESULTS.items():
        yield _evaluate(f"a result that is {kind}", _receipt(lambda r, v=value: r.update(result=v)))
    for kind, value in {"a list": [1], "a text": "x", "null": None}.items():
        told = _receipt(lambda r, v=value: r.update(base=v))
        yield _evaluate(f"a receipt whose base is {kind}", told, expected="either")
    for kind, text in {
        "cut": '{"result": {"file"',
        "a list": "[]",
        "deep": DEEP,
        "binary": b"\xff\xfe\0",
        "gone": None,
    }.items():
        yield _evaluate(f"a receipt that is {kind}", _text("run/receipt.json", text))
    yield _evaluate("a receipt that is a pipe", _fifo("run/receipt.json"))
    yield _evaluate("a receipt that is a device", _leads_to("run/receipt.json", "/dev/zero"))
    for kind, text in {
        "cut": '{"time": 1.0, "kind": "meas',
        "lists": "[]\n[]\n",
        "NaN": '{"time": NaN, "kind": "measured", "step": 2, "loss": NaN, "best": NaN}\n',
        "other types": '{"kind": "measured", "step": [], "loss": "x", "best": {}}\n',
        "gone": None,
    }.items():
        events = _text("run/events.jsonl", text)
        yield _evaluate(f"events that are {kind}", events, expected="either")
    for kind, text in {
        "cut": "base: {model: ",
        "a list": "[1]",
        "another base": "base: {model: gone}\nconcepts: [{images: images, instance_prompt: a}]\n",
        "no concept": "base: {model: base}\n",
        "images that are gone": "concepts: [{images: gone, instance_prompt: a}]\n",
        "an unknown key": "runn: {steps: 1}\n",
        "an unknown method": "method: {kind: magic}\n",
    }.items():
        yield _evaluate(f"a configuration with {kind}", _text("run/config.yaml", text))
    for kind, data in {"cut": b"\x10", "empty": b"", "a text": b"hello" * 100}.items():
        yield _evaluate(f"a result's file that is {kind}", _text("run/run.safetensors", data))
    yield _evaluate("a result's file that is a pipe", _fifo("run/run.safetensors"))


# -- lists of prompts -----------------------------------------------------------------------------

PROMPTS: dict[str, str | bytes | None] = {
    "gone": None,
    "empty": "",
    "an empty list": "[]",
    "an object": '{"{}": 1}',
    "numbers": "[1, 2]",
    "lists": '[["{}"]]',
    "without a place": '["a dog"]',
    "an attribute": '["{0.__class__}"]',
    "NaN": "NaN",
    "deep": DEEP,
    "deep and closed": "[" * 50_000 + "]" * 50_000,
    "latin-1": '["{} caf\xe9"]'.encode("latin-1"),
    "binary": bytes(range(256)),
    "half a character": '["{} \\ud800"]',
    "20 MB of one": b'["{}' + b"x" * 20_000_000 + b'"]',
    "a million": b'["{}"' + b',"{}"' * 1_000_000 + b"]",
    "a number of 10,000 digits": "[" + "9" * 10_000 + "]",
}


def _prompts() -> Iterator[Case]:
    for kind, text in PROMPTS.items():
        yield _evaluate(f"prompts that are {kind}", _text("prompts.json", text))
    yield _evaluate("prompts that are a pipe", _fifo("prompts.json"))
    yield _evaluate("prompts that are a device", _leads_to("prompts.json", "/dev/zero"))
    odd = '["{} \\u0000", "{} [/red]", "{} <script>alert(1)</script>", "{} {nope}"]'
    yield _evaluate("prompts with markup", _text("prompts.json", odd), expected="either")


# -- encoders -------------------------------------------------------------------------------------

REMOTE = {
    "model_type": "mine",
    "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
}
"""A model that brings its code along."""

CONFIGS: dict[str, str] = {
    "no JSON": "{",
    "a list": "[]",
    "empty": "{}",
    "deep": DEEP,
    "an unknown kind": '{"model_type": "nope"}',
    "absurd sizes": '{"model_type": "clip", "projection_dim": 1000000000000}',
    "no size at all": '{"model_type": "clip", "vision_config": {"hidden_size": 0}}',
    "numbers that are texts": '{"model_type": "clip", "vision_config": {"hidden_size": "many"}}',
    "code of its own": json.dumps(REMOTE),
}


def _model(place: Path, config: str) -> None:
    """A folder as of the hub, with code that leaves a trace if it is run."""
    folder = place / "model"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "evil.py").write_text(f"open({str(place / 'ran')!r}, 'w').close()\n")
    (folder / "model.safetensors").write_bytes(b"\x10" * 100)
    (folder / "preprocessor_config.json").write_text(config)


def _encoders() -> Iterator[Case]:
    """What cannot be loaded is a note of a judgement that is made otherwise, and no traceback."""
    for option in ("--clip", "--dino"):
        for kind, config in CONFIGS.items():
            yield _evaluate(
                f"{option} with a configuration: {kind}",
                lambda place, config=config: _model(place, config),
                option,
                "model",
                expected="either",
            )
        for name in ("gone", "prompts.json", "/proc", "../..", "a b", "x" * 300):
            yield _evaluate(f"{option} {name[:20]}", _nothing, option, name, expected="either")


TAGGER: dict[str, dict[str, str | bytes]] = {
    "config.json": {
        **CONFIGS,
        "arguments that are a list": '{"model_args": [1]}',
        "heads that are a text": '{"model_args": {"num_heads": "many"}}',
        "a side without end": '{"model_args": {"img_size": 1e300}}',
    },
    "selected_tags.csv": {
        "empty": "",
        "without columns": "a\nb\n",
        "binary": b"\xff\xfe\0",
        "with a NUL": "name,category\na\0b,0\n",
        "one long quote": 'name,category\n"' + "x" * 200_000,
        "too short": "name,category\na,0\n",
    },
    "model.safetensors": {"cut": b"\x10" * 100, "empty": b"", "text": "no weights"},
}
"""Files of a tagger, each in the place of a good one."""


def _tagger(place: Path, file: str, text: str | bytes) -> None:
    folder = place / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "selected_tags.csv").write_text("name,category\na_dog,0\n")
    header = b'{"head.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())


# -- other options --------------------------------------------------------------------------------


def _judging() -> Iterator[Case]:
    for flag, values in {
        "--images": ("0", "-1", "65", "nan", "1e3", "x"),
        "--steps": ("0", "1001", "1.5"),
        "--guidance": ("nan", "inf", "-1", "1e999", "x"),
        "--seed": ("-1", "1e9", "99999999999999999999"),
        "--batch-size": ("0", "1000000"),
        "--device": ("banana", "cuda:99", "cpu:-1", "meta"),
        "--kind": ("dead",),
        "--out": ("prompts.json", "/dev/full", "/dev/null/x", "/proc/x", "x" * 300),
    }.items():
        for value in values:
            yield _evaluate(f"{flag} {value[:20]}", _nothing, flag, value)


# -- captions -------------------------------------------------------------------------------------


def _look(
    name: str, change: Change, *more: str, command: str = "caption", folder: str = "images"
) -> Case:
    """``caption`` or ``mask``, by a model in ``model``."""

    def make(place: Path) -> Sequence[str]:
        draw(place / "images", 2)
        change(place)
        words = ["--word", "a dog"] if command == "mask" else []
        return [command, folder, "--device", "cpu", *words, *more]

    return Case("judging", f"{command}, {name}", make)


def _captions() -> Iterator[Case]:
    for command in ("caption", "mask"):
        look = partial(_look, command=command)
        for folder in ("gone", "images/0.png", "/proc", "/dev/null", "", "x" * 5000):
            yield look(f"a folder named {folder[:20]!r}", _nothing, folder=folder)
        yield look("a folder that is a pipe", _fifo("pipe"), folder="pipe")
        yield look("a folder without images", lambda p: (p / "e").mkdir(), folder="e")
        for kind, config in CONFIGS.items():
            yield look(
                f"a model with a configuration: {kind}",
                lambda place, config=config: _model(place, config),
                "--model",
                "model",
            )
        for name in ("gone", "images", "images/0.png", "/proc", "", "../..", "a b", "x" * 300):
            yield look(f"a model named {name[:20]!r}", _nothing, "--model", name)
        for device in ("banana", "cuda:99"):
            yield look(f"--device {device}", _nothing, "--device", device)
    for flag, values in {
        "--longest": ("0", "4", "1001", "nan"),
        "--batch-size": ("0", "1000000"),
    }.items():
        for value in values:
            yield _look(f"{flag} {value}", _nothing, flag, value)
    for file, contents in TAGGER.items():
        for kind, text in contents.items():
            yield _look(
                f"a tagger whose {file} is {kind}",
                lambda place, file=file, text=text: _tagger(place, file, text),
                "--model",
                "model",
            )
    for flag in ("--threshold", "--character-threshold"):
        for value in ("nan", "inf", "-1", "1.5"):
            yield _look(f"{flag} {value}", _nothing, flag, value)
    for flag in ("--threshold", "--grow", "--feather"):
        for value in ("nan", "inf", "-1", "1e999"):
            yield _look(f"{flag} {value}", _nothing, flag, value, command="mask")
    yield _look("no word", _nothing, "--word", " ", command="mask")
    yield _look("a trigger of 100,000 letters", _nothing, "--trigger", "x" * 100_000)
