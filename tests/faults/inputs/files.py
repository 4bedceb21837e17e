"""Model files whose container is damaged, whatever they hold: safetensors, pickles, embeddings."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from tests.faults.case import Case, Expected
from tests.faults.inputs._adapters import NAMES, base, lora, write_lora

Write = Callable[[Path], object]
"""Makes the damaged file at a path."""

COMMANDS: dict[str, Callable[[Path, str], Sequence[Any]]] = {
    "inspect": lambda folder, file: ["inspect", file],
    "merge": lambda folder, file: ["merge", _good(folder), file, "--out", "out.safetensors"],
    "bake onto it": lambda folder, file: ["bake", file, _good(folder), "--out", "out.safetensors"],
    "bake": lambda folder, file: ["bake", base(folder), file, "--out", "out.safetensors"],
    "resize": lambda folder, file: ["resize", file, "out.safetensors", "--rank", "1"],
    "convert": lambda folder, file: ["convert", file, "out.safetensors"],
    "extract": lambda folder, file: ["extract", base(folder), file, "out.safetensors"],
}
GOOD = save(lora(), {"format": "pt"})
KEY = f"{NAMES[0]}.lora_up.weight"


def cases() -> Iterator[Case]:
    """Every damage under several commands in turn, so that all meet all sooner or later."""
    turn = 0
    for kind, ending, write in _damaged():
        for _ in range(3):
            command = list(COMMANDS)[turn % len(COMMANDS)]
            turn += 1
            told = command == "inspect" and kind.split(" named ")[0] in _STRANGERS
            how: Expected = "either" if told else "refused"  # inspect may say what it is
            yield _case(f"{kind}, {command}", COMMANDS[command], f"a{ending}", write, how)
    for kind, write in _strange():
        for command, arguments in COMMANDS.items():
            yield _case(f"{kind}, {command}", arguments, "a.safetensors", write, "refused")
    for ending in (".safetensors", ".pt", ".ckpt"):
        yield _case(
            f"good {ending}", COMMANDS["merge"], f"a{ending}", lambda p: _any(p), "accepted"
        )
    yield from _embeddings()


def _case(
    name: str,
    arguments: Callable[[Path, str], Sequence[Any]],
    file: str,
    write: Write,
    expected: Expected,
) -> Case:
    def make(folder: Path) -> Sequence[Any]:
        write(folder / file)
        return arguments(folder, file)

    return Case("files", name, make, expected)


def _good(folder: Path) -> str:
    write_lora(folder / "good.safetensors")
    return "good.safetensors"


def _any(path: Path) -> None:
    if path.suffix == ".safetensors":
        path.write_bytes(GOOD)
    else:
        torch.save(lora(), path)


def _damaged() -> Iterator[tuple[str, str, Write]]:
    """``(what is wrong, ending, writer)``."""
    for part in (0, 1, 7, 8, 9, 100, len(GOOD) // 2, len(GOOD) - 1):
        yield f"safetensors cut at {part}", ".safetensors", _bytes(GOOD[:part])
    for more in (1, 4096):
        yield f"{more} bytes too many", ".safetensors", _bytes(GOOD + b"\0" * more)
    for kind, change in _HEADERS.items():
        yield f"header with {kind}", ".safetensors", _header(change)
    for kind, text in _TEXTS.items():
        yield f"header that is {kind}", ".safetensors", _header_text(text)
    for length in (0, 1, 2**31, 2**63, 2**64 - 1, 99_000_000):
        data = struct.pack("<Q", length) + GOOD[8:]
        yield f"header length {length}", ".safetensors", _bytes(data)
    for kind, data in _STRANGERS.items():
        for ending in (".safetensors", ".pt"):
            yield f"{kind} named {ending}", ending, _bytes(data)
    for form in ("zip", "bare"):
        buffer = io.BytesIO()
        torch.save(lora(), buffer, _use_new_zipfile_serialization=form == "zip")
        data = buffer.getvalue()
        for share in (0.001, 0.02, 0.3, 0.6, 0.9, 0.999):
            cut = data[: int(len(data) * share)]
            yield f"{form} pickle cut to {share:.1%}", ".ckpt", _bytes(cut)
        for content, value in _CONTENTS.items():
            yield (
                f"{form} pickle of {content}",
                ".pt",
                lambda p, v=value, z=form == "zip": torch.save(
                    v(), p, _use_new_zipfile_serialization=z
                ),
            )
    for kind, pickled in _INSTRUCTIONS.items():
        yield f"archive with {kind}", ".ckpt", _archive({"a/data.pkl": pickled})
    for kind, entries in _ARCHIVES.items():
        yield f"archive with {kind}", ".ckpt", _archive(entries)
    yield "archive that inflates to 300 MB", ".pt", _archive(_BOMB, packed=True)
    yield "archive with numbers that inflate", ".pt", _archive(_NUMBERS, packed=True)


def _bytes(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _header_text(text: bytes | Callable[[], bytes]) -> Write:
    def write(path: Path) -> None:
        made = text if isinstance(text, bytes) else text()
        path.write_bytes(struct.pack("<Q", len(made)) + made + b"\0" * 64)

    return write


def _header(change: Callable[[dict[str, Any]], object]) -> Write:
    def write(path: Path) -> None:
        length = struct.unpack("<Q", GOOD[:8])[0]
        header = json.loads(GOOD[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + GOOD[8 + length :])

    return write


def _entry(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[KEY].update(changes)


_HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown dtype": _entry(dtype="F42"),
    "a dtype of this program's none": _entry(dtype="F8_E8M0"),
    "a dtype that is a number": _entry(dtype=4),
    "a narrower dtype": _entry(dtype="F16"),
    "a wider dtype": _entry(dtype="F64"),
    "a larger shape": _entry(shape=[1000, 1000]),
    "a negative size": _entry(shape=[-32, -4]),
    "half a size": _entry(shape=[32.5, 4]),
    "a size of 2^64": _entry(shape=[2**64, 1]),
    "sizes that multiply to 2^70": _entry(shape=[2**35, 2**35]),
    "a shape that is text": _entry(shape="32"),
    "no shape": lambda header: header[KEY].pop("shape"),
    "forty dimensions": _entry(shape=[1] * 38 + [32, 4]),
    "a place before the start": _entry(data_offsets=[-512, 0]),
    "a place that ends before it begins": _entry(data_offsets=[512, 0]),
    "a place behind the end": _entry(data_offsets=[10**9, 10**9 + 512]),
    "a place of 2^63": _entry(data_offsets=[2**63, 2**63 + 512]),
    "one place": _entry(data_offsets=[0]),
    "a place that is text": _entry(data_offsets=["0", "512"]),
    "the place of another": lambda header: header.update(
        {KEY: header[f"{NAMES[1]}.lora_up.weight"]}
    ),
    "a hole": lambda header: header.pop(f"{NAMES[1]}.lora_up.weight"),
    "an entry that is a number": lambda header: header.update({KEY: 3}),
    "an entry that is null": lambda header: header.update({KEY: None}),
    "an entry too much": _entry(more=1),
    "metadata that is a number": lambda header: header.update(__metadata__=3),
    "metadata with a number": lambda header: header.update(__metadata__={"a": 3}),
    "metadata in metadata": lambda header: header.update(__metadata__={"a": {"b": "c"}}),
    "half a character": lambda header: header.update({"\ud800": header.pop(KEY)}),
}
_ONE = b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}'
_TEXTS: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"{}",
    "not closed": _ONE,
    "a list": b"[1]",
    "a name twice": _ONE + b',"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "a key twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "NaN": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,64]}}',
    "a number of 5000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}",
    "not UTF-8": b'{"\xff\xfe":1}',
    "nested deeply": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a million lists": lambda: b'{"a":[' + b"[]," * 1_100_000 + b"1]}",
    "wide": lambda: (
        b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(900_000)) + b"}}"
    ),
    "many tensors": lambda: (
        b"{"
        + b",".join(
            b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(300_000)
        )
        + b"}"
    ),
    "zeros": b"{" + b"\0" * 100,
    "spaces": b"{" + b" " * 1000,
}
_STRANGERS = {
    "a web page": b"<!DOCTYPE html><html>not found</html>",
    "a JSON error": b'{"error": "unauthorised"}',
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "a GGUF": b"GGUF" + b"\0" * 100,
    "an empty zip": b"PK\x05\x06" + b"\0" * 18,
    "zeros": b"\0" * 4096,
    "noise": bytes((i * i + 7 * i) % 251 for i in range(4096)),
    "a text": "für später aufheben\n".encode(),
    "UTF-16": "a note".encode("utf-16"),
}


def _alias() -> dict[str, torch.Tensor]:
    one = torch.zeros(100_000)
    return {f"{NAMES[0]}.{i}.lora_up.weight": one for i in range(60)}


_CONTENTS: dict[str, Callable[[], Any]] = {
    "a number": lambda: 3,
    "a list": lambda: [torch.ones(2)],
    "a tensor": lambda: torch.ones(2),
    "an empty dict": dict,
    "a dict of numbers": lambda: {"a": 1.5},
    "names that are numbers": lambda: {1: torch.ones(2)},
    "names that are bytes": lambda: {b"a": torch.ones(2)},
    "names that are tuples": lambda: {("a", 1): torch.ones(2)},
    "a sparse tensor": lambda: {KEY: torch.eye(4).to_sparse()},
    "a tensor without data": lambda: {KEY: torch.ones(4, device="meta")},
    "complex numbers": lambda: {KEY: torch.ones(4, dtype=torch.complex128)},
    "one storage under sixty names": _alias,
    "a repeated number": lambda: {KEY: torch.ones(1).expand(40_000, 40_000)},
    "a function": lambda: {KEY: torch.ones(2), "f": os.getcwd},
    "a module": lambda: {KEY: torch.ones(2), "m": torch.nn.Linear(2, 2)},
}


def _global(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(arguments) + b"tR"


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _int(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def _tensor(size: Sequence[int], stride: Sequence[int], count: int, offset: int = 0) -> bytes:
    """Instructions of a dict with one tensor over storage 0, which has 16 bytes."""
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    shape = b"(" + b"".join(map(_int, size)) + b"t" + b"(" + b"".join(map(_int, stride)) + b"t"
    made = _global(
        "torch._utils._rebuild_tensor_v2",
        storage + _int(count) + b"tQ",
        _int(offset),
        shape,
        b"\x89",
        _global("collections.OrderedDict"),
    )
    return b"\x80\x02}" + _text(KEY) + made + b"s."


_INSTRUCTIONS: dict[str, bytes] = {
    "a storage larger than the file": _tensor([4], [1], 10**12),
    "a storage of a negative size": _tensor([4], [1], -4),
    "a tensor larger than its storage": _tensor([10**6, 10**6], [10**6, 1], 4),
    "a tensor that repeats a number": _tensor([10**9], [0], 4),
    "a tensor behind its storage": _tensor([4], [1], 4, 100),
    "a tensor before its storage": _tensor([4], [1], 4, -1),
    "a negative stride": _tensor([4], [-1], 4),
    "a size of 2^62": _tensor([2**62, 2**62], [1, 1], 4),
    "fewer strides than sizes": _tensor([2, 2], [1], 4),
    "a system call": b"\x80\x02" + _global("os.system", _text("true")) + b".",
    "eval": b"\x80\x02" + _global("builtins.eval", _text("1")) + b".",
    "a gigabyte of zeros": b"\x80\x02" + _global("builtins.bytearray", _int(2**30)) + b".",
    "a tuple that unfolds": b"\x80\x02})q\0" + b"h\0h\0\x86q\0" * 64 + b"K\x01s.",
    "a list nested a million deep": b"\x80\x02" + b"]" * 999_999 + b"a" * 999_998 + b".",
    "a text of 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc",
    "too few values": b"\x80\x02K\x01s.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an unknown instruction": b"\x80\x02\xf7.",
    "a memo that is empty": b"\x80\x02h\x05.",
    "a newer protocol": b"\x80\x05\x95\x05\0\0\0\0\0\0\0}\x94.",
}
_FOUR = _tensor([4], [1], 4)
_ARCHIVES: dict[str, dict[str, bytes | int | None]] = {
    "no pickle": {"a/data/0": b"\0" * 16},
    "two pickles": {"a/data.pkl": _FOUR, "b/data.pkl": _FOUR},
    "no numbers": {"a/data.pkl": _FOUR, "a/data/0": None},
    "too few numbers": {"a/data.pkl": _FOUR, "a/data/0": b"\0" * 8},
    "a traversal": {"../data.pkl": _FOUR},
    "TorchScript": {"a/data.pkl": _FOUR, "a/constants.pkl": b"\x80\x02).", "a/code/x.py": b"1"},
}
_BOMB: dict[str, bytes | int] = {"a/data.pkl": 300_000_000}
_NUMBERS: dict[str, bytes | int] = {
    "a/data.pkl": _tensor([10**7], [1], 10**7),
    "a/data/0": 40_000_000,
}
"""A number stands for so many zeros."""


def _archive(entries: Mapping[str, bytes | int | None], *, packed: bool = False) -> Write:
    def write(path: Path) -> None:
        whole = {"a/data/0": b"\0" * 16, "a/version": b"3\n", "a/byteorder": b"little", **entries}
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind, compresslevel=1) as file:
            for name, data in whole.items():
                if isinstance(data, bytes):
                    file.writestr(name, data)
                elif data is not None:
                    with file.open(name, "w") as entry:
                        for _ in range(data // 1_000_000):
                            entry.write(b"\0" * 1_000_000)

    return write


def _strange() -> Iterator[tuple[str, Write]]:
    """Things at a file's place that are none."""
    yield "a pipe", lambda path: os.mkfifo(path)
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero")
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    yield "a link to nothing", lambda path: path.symlink_to("none")
    yield "an empty folder", lambda path: path.mkdir()
    yield "a folder of folders", lambda path: (path / "a" / "b").mkdir(parents=True)
    yield "nothing", lambda path: None
    yield "a folder with a pipe as configuration", _piped
    yield "a folder with a device as weights", _weighed


def _piped(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "adapter_config.json")


def _weighed(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (path / "adapter_model.safetensors").symlink_to("/dev/zero")


def _embeddings() -> Iterator[Case]:
    """Files of textual inversion."""
    rows = torch.ones(2, 768)
    files: dict[str, tuple[dict[str, torch.Tensor], Expected]] = {
        "NaN": ({"emb_params": torch.full((2, 768), torch.nan)}, "refused"),
        "infinity": ({"emb_params": torch.full((2, 768), torch.inf)}, "refused"),
        "no rows": ({"emb_params": torch.ones(0, 768)}, "refused"),
        "no width": ({"emb_params": torch.ones(2, 0)}, "refused"),
        "a single number": ({"emb_params": torch.tensor(1.0)}, "refused"),
        "three dimensions": ({"emb_params": torch.ones(1, 2, 768)}, "refused"),
        "whole numbers": ({"emb_params": rows.int()}, "refused"),
        "truths": ({"emb_params": rows.bool()}, "refused"),
        "complex numbers": ({"emb_params": rows * 1j}, "refused"),
        "100,000 vectors": ({"emb_params": torch.ones(100_000, 8)}, "refused"),
        "two halves of other lengths": ({"clip_l": rows, "clip_g": torch.ones(3, 1280)}, "refused"),
        "fp16": ({"emb_params": rows.half()}, "accepted"),
        "bf16": ({"emb_params": rows.bfloat16()}, "accepted"),
        "good rows": ({"emb_params": rows}, "accepted"),
    }
    for kind, (tensors, expected) in files.items():
        for form in (".safetensors", ".pt"):

            def write(path: Path, tensors: Any = tensors) -> None:
                if path.suffix == ".pt":
                    torch.save({"string_to_param": {"*": next(iter(tensors.values()))}}, path)
                else:
                    save_file(tensors, path)

            if len(tensors) > 1 and form == ".pt":
                continue
            name = f"embedding with {kind}, {form}"
            yield _case(name, COMMANDS["inspect"], f"word{form}", write, expected)
