"""Damaged files of a base: cut, foreign, absent, special; shards, tokenizers, whole places."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Expected
from tests.faults.inputs._models import (
    FAMILIES,
    FILES,
    PARTS,
    READING,
    SHAPES,
    Damage,
    Spread,
    arguments,
    edit_json,
    edit_tensors,
    one_case,
    put,
    replace,
    set_key,
    spoil,
    weights_of,
)

ALL = (*SHAPES, "inspect")


def cases() -> Iterator[Case]:
    """Every class of fault, dealt out over the commands."""
    yield from _small_files()
    yield from _indexes()
    yield from _weights()
    yield from _shards()
    yield from _tokenizers()
    yield from _places()


def _small_files() -> Iterator[Case]:
    spread = Spread("folders", SHAPES)
    for number, family in enumerate(FAMILIES):
        inside = ["model_index.json", "scheduler/scheduler_config.json"]
        inside += [f"{part}/config.json" for part in PARTS[family]]
        for place, name in enumerate(inside):
            for index, (what, content) in enumerate(FILES.items()):
                if family != "sd1" and (index + place + number) % 3:
                    continue
                # A folder without a scheduler is one of an old kind, and has the usual one.
                absent = what in ("missing", "a link to nothing") and "scheduler" in name
                expected: Expected = "either" if absent else "refused"
                yield from spread.cases(
                    family, "folder", f"{name} {what}", spoil(name, content), expected, each=1
                )
    inspect = Spread("folders", ("inspect",), each=1)
    for what, content in FILES.items():
        damage = spoil("model_index.json", content)
        yield from inspect.cases("sd1", "folder", f"model_index.json {what}", damage)
        damage = spoil("text_encoder/config.json", content)
        yield from inspect.cases("sd1", "folder", f"text config {what}", damage, "either")


INDEX: dict[str, tuple[Any, ...]] = {
    "_class_name": (..., 1, None, [], "FluxPipeline", "StableDiffusion3Pipeline", "", {"a": 1}),
    "unet": (1, "text", [], [1, 2]),
    "text_encoder": (1, [None, None], [], {}),
    "vae": ([None, None], 7),
}


def _indexes() -> Iterator[Case]:
    spread = Spread("folders", ALL)
    for family in FAMILIES:
        for key, values in INDEX.items():
            for value in values:
                name = "missing" if value is ... else json.dumps(value)
                damage = set_key("model_index.json", key, value)
                wrong = key == "_class_name"
                yield from spread.cases(
                    family,
                    "folder",
                    f"index {key} {name}",
                    damage,
                    "refused" if wrong else "either",
                    each=2,
                    commands=SHAPES,
                )
    for family in FAMILIES:
        other = "StableDiffusionPipeline" if family == "sdxl" else "StableDiffusionXLPipeline"
        yield from spread.cases(
            family,
            "folder",
            "index of another family",
            set_key("model_index.json", "_class_name", other),
            commands=SHAPES,
        )


def _cut(keep: float) -> Damage:
    def damage(file: Path) -> None:
        data = file.read_bytes()
        replace(file, data[: int(len(data) * keep)])

    return damage


def _patched(change: Callable[[bytearray], None]) -> Damage:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        change(data)
        replace(file, bytes(data))

    return damage


def _header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes a safetensors file's header, whose length follows."""

    def damage(file: Path) -> None:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        replace(file, len(text).to_bytes(8, "little") + text + data[8 + length :])

    return damage


def _zip(name: str) -> Damage:
    def damage(file: Path) -> None:
        file.unlink()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"x" * 100)

    return damage


def _first(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda h: change(h[next(n for n in h if n != "__metadata__")])


CONTAINERS: dict[str, Damage] = {
    "cut in the header": _cut(0.001),
    "half": _cut(0.5),
    "all but the end": _cut(0.9999),
    "bytes more": lambda f: replace(f, f.read_bytes() + b"more"),
    "zeros": lambda f: replace(f, bytes(10_000)),
    "length of 2^63": _patched(lambda d: d.__setitem__(slice(0, 8), b"\xff" * 7 + b"\x7f")),
    "length of zero": _patched(lambda d: d.__setitem__(slice(0, 8), bytes(8))),
    "a broken header": _patched(lambda d: d.__setitem__(slice(20, 24), b"\0\xff\0\xff")),
    "an empty header": lambda f: replace(f, (2).to_bytes(8, "little") + b"{}"),
    "unknown dtype": _header(_first(lambda e: e.__setitem__("dtype", "F128"))),
    "negative shape": _header(_first(lambda e: e.__setitem__("shape", [-4, -4]))),
    "shape of text": _header(_first(lambda e: e.__setitem__("shape", "four"))),
    "huge shape": _header(_first(lambda e: e.__setitem__("shape", [10**9, 10**9]))),
    "offsets beyond": _header(_first(lambda e: e.__setitem__("data_offsets", [0, 10**15]))),
    "offsets backwards": _header(_first(lambda e: e.__setitem__("data_offsets", [100, 0]))),
    "metadata of numbers": _header(lambda h: h.__setitem__("__metadata__", {"a": [1]})),
    "HTML": lambda f: replace(f, b"<!DOCTYPE html><html>not found</html>"),
    "a PNG": lambda f: replace(f, b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a PDF": lambda f: replace(f, b"%PDF-1.7" + bytes(100)),
    "GGUF": lambda f: replace(f, b"GGUF" + bytes(100)),
    "an LFS pointer": lambda f: replace(f, "version https://git-lfs.github.com/spec/v1\noid 1\n"),
    "a zip": _zip("readme.txt"),
    "a zip with a pickle": _zip("archive/data.pkl"),
    "JSON": lambda f: replace(f, '{"error": "not found"}'),
    "text": lambda f: replace(f, "hello\n" * 100),
    "a pickle of code": lambda f: replace(
        f, b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch hacked\x85R."
    ),
    "a cut pickle": lambda f: replace(f, b"\x80\x02}q"),
}


def _weights() -> Iterator[Case]:
    """Containers of weights: one part of a folder, or the whole single file."""
    spread = Spread("folders", READING)
    for what, damage in CONTAINERS.items():
        for number, family in enumerate(FAMILIES):
            part = PARTS[family][(number + len(what)) % len(PARTS[family])]

            def inside(base: Path, damage: Damage = damage, part: str = part) -> None:
                damage(weights_of(base, part))

            yield from spread.cases(family, "folder", f"{part} {what}", inside, each=1)
            if number == len(what) % 3:
                yield from spread.cases(family, "safetensors", what, damage, each=2)
        # Of a file that is no model, inspect says what it is.
        yield one_case("folders", "inspect", "sd1", "safetensors", what, damage, "either")
    for what in (
        "empty",
        "missing",
        "a fifo",
        "a folder",
        "a link to itself",
        "a terabyte",
        "a link to a device",
        "a link to nothing",
    ):
        for family in FAMILIES:
            for part in PARTS[family][: 4 if family == "sd1" else 1]:
                name = str(weights_of(Path("."), part))
                yield from spread.cases(
                    family, "folder", f"{name} {what}", spoil(name, FILES[what]), each=1
                )
        yield from spread.cases("sd1", "safetensors", what, spoil("", FILES[what]), each=2)
        yield from Spread("folders", ("inspect",), 1).cases(
            "sd1", "safetensors", what, spoil("", FILES[what])
        )
    for what in ("half", "all but the end", "cut in the header", "zeros", "bytes more"):
        yield from spread.cases(
            "sd1",
            "ckpt",
            what,
            CONTAINERS[what],
            "either" if what == "bytes more" else "refused",
        )


def _sharded(base: Path) -> Path:
    """Splits the UNet's weights in two; returns the folder."""
    file = weights_of(base, "unet")
    names: list[str] = []
    edit_tensors(file, lambda tensors: names.extend(sorted(tensors)))
    data = file.read_bytes()
    half = len(names) // 2
    weight_map = {}
    for number, kept in enumerate((names[:half], names[half:]), 1):
        shard = file.with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
        shard.write_bytes(data)
        edit_tensors(shard, lambda t, kept=kept: [t.pop(n) for n in list(t) if n not in kept])
        weight_map |= dict.fromkeys(kept, shard.name)
    file.unlink()
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    (base / "unet" / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    return base / "unet"


INDEX_NAME = "diffusion_pytorch_model.safetensors.index.json"
FIRST = "diffusion_pytorch_model-00001-of-00002.safetensors"


def _map(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes the index of a sharded UNet."""

    def damage(base: Path) -> None:
        edit_json(_sharded(base) / INDEX_NAME, lambda index: change(index) and None)

    return damage


def _shard(change: Damage) -> Damage:
    """Changes the first shard of a sharded UNet."""
    return lambda base: change(_sharded(base) / FIRST)


def _point(to: str) -> Damage:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"]["conv_in.weight"] = to

    return _map(change)


def _all(to: Any) -> Damage:
    return _map(lambda index: index.update(weight_map=to))


def _copy_shard(name: str) -> Damage:
    return lambda base: os.link(_sharded(base) / FIRST, base / "unet" / name)


def _shards() -> Iterator[Case]:
    spread = Spread("folders", SHAPES)
    for family in FAMILIES:
        yield from spread.cases(
            family, "folder", "shards, control", lambda b: _sharded(b) and None, "accepted"
        )
        damages: dict[str, Damage] = {
            "map missing": _map(lambda i: i.pop("weight_map")),
            "map a list": _all([]),
            "map a text": _all("text"),
            "map empty": _all({}),
            "map of numbers": _map(
                lambda i: i.update(weight_map=dict.fromkeys(i["weight_map"], 1))
            ),
            "map of lists": _map(lambda i: i.update(weight_map={"a": ["b"]})),
            "a tensor that no shard has": _map(lambda i: i["weight_map"].update(new=FIRST)),
            "a tensor left out": _map(lambda i: i["weight_map"].pop("conv_in.weight")),
            "a tensor in the other shard": _point(FIRST.replace("00001-of", "00002-of")),
            "a shard above": _point("../vae/diffusion_pytorch_model.safetensors"),
            "a shard elsewhere": _point("/etc/passwd"),
            "a shard with a backslash": _point("..\\vae\\x.safetensors"),
            "a shard called nothing": _point(""),
            "a shard called dot": _point(".."),
            "a shard with NUL": _point("a\0b.safetensors"),
            "a shard with a long name": _point("x" * 5000),
            "the index as a shard": _point(INDEX_NAME),
            "100,000 shards": _map(
                lambda i: i.update(weight_map={str(n): f"{n}.safetensors" for n in range(100_000)})
            ),
            "a shard too many": _copy_shard("diffusion_pytorch_model-00003-of-00002.safetensors"),
            "total size text": _map(lambda i: i.update(metadata="text")),
            **{f"shard {n}": _shard(d) for n, d in CONTAINERS.items() if len(n) % 3 != 1},
            **{
                f"shard {n}": (lambda base, c=FILES[n]: spoil("", c)(_sharded(base) / FIRST))
                for n in ("missing", "a fifo", "a folder", "empty", "a link to itself")
            },
            **{
                f"index {n}": (lambda base, c=FILES[n]: spoil("", c)(_sharded(base) / INDEX_NAME))
                for n in (
                    "cut",
                    "a list",
                    "null",
                    "deeply nested list",
                    "a terabyte",
                    "a fifo",
                    "key twice",
                    "not JSON",
                )
            },
        }
        for number, (what, damage) in enumerate(damages.items()):
            if family != "sd1" and (number + len(family)) % 3:
                continue
            either = what in ("total size text",)
            yield from spread.cases(
                family,
                "folder",
                f"shards, {what}",
                damage,
                "either" if either else "refused",
                each=1,
            )


def _vocabulary(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda base: edit_json(base / "tokenizer" / "vocab.json", lambda v: change(v) and None)


def _merges(change: Callable[[list[str]], list[str]]) -> Damage:
    def damage(base: Path) -> None:
        file = base / "tokenizer" / "merges.txt"
        replace(file, "\n".join(change(file.read_text("utf-8").split("\n"))))

    return damage


TOKENIZER: dict[str, Damage] = {
    "vocabulary without words": _vocabulary(lambda v: v.clear()),
    "vocabulary without its end": _vocabulary(lambda v: v.pop("<|endoftext|>")),
    "vocabulary without its begin": _vocabulary(lambda v: v.pop("<|startoftext|>")),
    "vocabulary without a letter": _vocabulary(lambda v: v.pop("a")),
    "ids of text": _vocabulary(lambda v: v.update(dict.fromkeys(v, "a"))),
    "ids below zero": _vocabulary(lambda v: v.update(cat=-1)),
    "ids beyond the encoder": _vocabulary(lambda v: v.update(cat=10**6)),
    "ids beyond 64 bits": _vocabulary(lambda v: v.update(cat=2**70)),
    "an id twice": _vocabulary(lambda v: v.update(cat=5)),
    "all ids one": _vocabulary(lambda v: v.update(dict.fromkeys(v, 1))),
    "fractions": _vocabulary(lambda v: v.update(cat=1.5)),
    "merges cut in a line": _merges(lambda lines: [*lines[:100], "a"]),
    "merges of unknown words": _merges(lambda lines: [*lines[:100], "zzz qqq"]),
    "merges of three words": _merges(lambda lines: [*lines[:100], "a b c"]),
    "merges that are one line": _merges(lambda lines: ["".join(lines)]),
    "merges half": _merges(lambda lines: lines[: len(lines) // 2]),
    "length NaN": set_key("tokenizer/tokenizer_config.json", "model_max_length", float("nan")),
    "length zero": set_key("tokenizer/tokenizer_config.json", "model_max_length", 0),
    "length negative": set_key("tokenizer/tokenizer_config.json", "model_max_length", -77),
    "length two": set_key("tokenizer/tokenizer_config.json", "model_max_length", 2),
    "length huge": set_key("tokenizer/tokenizer_config.json", "model_max_length", 10**30),
    "length text": set_key("tokenizer/tokenizer_config.json", "model_max_length", "77"),
    "length absent": set_key("tokenizer/tokenizer_config.json", "model_max_length", ...),
    "begin a number": set_key("tokenizer/tokenizer_config.json", "bos_token", 7),
    "end unknown": set_key("tokenizer/tokenizer_config.json", "eos_token", "<nothing>"),
    "padding a list": set_key("tokenizer/special_tokens_map.json", "pad_token", [1]),
    "class of code": set_key("tokenizer/tokenizer_config.json", "tokenizer_class", "Evil"),
    "auto map": set_key("tokenizer/tokenizer_config.json", "auto_map", {"AutoTokenizer": "a.B"}),
}
"""What may be read all the same is told by :data:`LENIENT`."""
LENIENT = (
    "merges half",
    "length huge",
    "length absent",
    "end unknown",
    "padding a list",
    "class of code",
    "auto map",
    "begin a number",
    "length text",
    "length NaN",
    "length zero",
    "length negative",
    "length two",
)


def _tokenizers() -> Iterator[Case]:
    spread = Spread("folders", ("to folder", "sample", "check", "train", "to file", "extract"))
    for number, family in enumerate(FAMILIES):
        for index, (what, damage) in enumerate(TOKENIZER.items()):
            if family == "sd1" or index % 3 == number:
                expected: Expected = "either" if what in LENIENT else "refused"
                yield from spread.cases(
                    family, "folder", f"tokenizer, {what}", damage, expected, each=2
                )
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        for what, content in FILES.items():
            lenient = name not in ("vocab.json",)
            yield from spread.cases(
                "sd1",
                "folder",
                f"{name} {what}",
                spoil(f"tokenizer/{name}", content),
                "either" if lenient else "refused",
                each=1,
            )


def _socket(folder: Path) -> str:
    held = socket.socket(socket.AF_UNIX)
    held.bind("base")
    held.close()
    return "base"


def _many(folder: Path) -> str:
    (folder / "base").mkdir()
    for number in range(12_000):
        os.mknod(folder / "base" / f"file-{number}.safetensors")
    return "base"


def _made(make: Callable[[Path], object]) -> Callable[[Path], str]:
    def place(folder: Path) -> str:
        make(folder / "base")
        return "base"

    return place


def _full(folder: Path, inside: str) -> str:
    """A base one of whose folders has very many other files."""
    put(folder, "sd1", "folder")
    for number in range(12_000):
        os.mknod(folder / "base" / inside / f"file-{number}")
    return "base"


PLACES: dict[str, Callable[[Path], str]] = {
    "/proc": lambda _: "/proc",
    "/dev": lambda _: "/dev",
    "/proc/self": lambda _: "/proc/self",
    "/dev/zero": lambda _: "/dev/zero",
    "/dev/null": lambda _: "/dev/null",
    "/dev/full": lambda _: "/dev/full",
    "/dev/stdin": lambda _: "/dev/stdin",
    "/proc/self/mem": lambda _: "/proc/self/mem",
    "/etc/passwd": lambda _: "/etc/passwd",
    "nothing": lambda _: "nothing-there",
    "no text": lambda _: "",
    "a space": lambda _: " ",
    "the root": lambda _: "/",
    "the folder itself": lambda _: ".",
    "the folder above": lambda _: "..",
    "NUL in the name": lambda _: "a\0b",
    "a long name": lambda _: "x" * 5000,
    "a long path": lambda _: "x/" * 5000,
    "a file as a folder": _made(lambda p: (p.write_text("x"), None)[1])
    and (lambda folder: (replace(folder / "base", "x"), "base/inside")[1]),
    "a link to itself": _made(lambda p: p.symlink_to(p)),
    "a link to nothing": _made(lambda p: p.symlink_to("nowhere")),
    "a link to a device": _made(lambda p: p.symlink_to("/dev/zero")),
    "a fifo": _made(os.mkfifo),
    "a socket": _socket,
    "an empty folder": _made(os.mkdir),
    "an empty file": _made(lambda p: p.touch()),
    "very many files": _many,
    "a web address": lambda _: "https://example.com/model.safetensors",
    "a UNC path": lambda _: "//server/share/model",
    "a variable": lambda _: "$HOME",
    "a home of nobody": lambda _: "~nobody-here/model",
    "hub id": lambda _: "someone/some-model",
    "hub id above": lambda _: "../some-model",
    "hub id with dots": lambda _: "someone/..",
    "hub id long": lambda _: "someone/" + "x" * 300,
}


def _places() -> Iterator[Case]:
    for number, (what, place) in enumerate(PLACES.items()):
        # Every place under a third of the commands, and inspect.
        for command in ("inspect", *SHAPES[number % 3 :: 3]):

            def make(folder: Path, command: str = command, place: Any = place) -> list[str]:
                base = place(folder)
                return arguments(command, folder, "sd1", "safetensors", base)

            # Of a text, inspect says that it is one.
            told = what == "/etc/passwd" and command == "inspect"
            yield Case(
                "folders",
                f"base is {what}: {command}",
                make,
                "either" if told else "refused",
                may_write=command.startswith("train"),
            )
    for inside in ("unet", "tokenizer", "."):

        def crowded(folder: Path, inside: str = inside) -> list[str]:
            return ["convert", _full(folder, inside), "out"]

        yield Case("folders", f"12,000 other files in {inside}", crowded, "either")
