"""GGUF: every kind of block as its makers' own package reads it, and damaged files in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from helpers.host_files import write_gguf

from dreambooth_core.errors import UserError
from dreambooth_core.formats.gguf import KINDS, read_index, read_tensor

BLOCKS = json.loads(Path(__file__).with_name("gguf_blocks.json").read_text(encoding="utf-8"))
"""Random bytes of each kind, and the numbers that ``gguf.quants.dequantize`` (0.19.0) makes of
them."""


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_read_as_their_makers_do(name: str) -> None:
    block = BLOCKS[name]
    kind = KINDS[block["number"]]
    raw = torch.frombuffer(bytearray.fromhex(block["bytes"]), dtype=torch.uint8)
    values = torch.frombuffer(bytearray.fromhex(block["values"]), dtype=torch.float32)
    assert kind.name == name
    found = kind.read(raw.reshape(-1, kind.bytes)).flatten()
    torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-7)


def test_shapes_and_places(tmp_path: Path) -> None:
    """Shapes lie the other way round there, and one that was changed is named apart."""
    path = tmp_path / "model.gguf"
    tensors = {"a": torch.arange(64.0).reshape(2, 32), "b": torch.arange(6.0).reshape(1, 2, 3)}
    write_gguf(path, tensors, quantised=("a",))
    index = read_index(path)
    assert (index["a"].kind.name, index["a"].shape, index["b"].shape) == (
        "Q8_0",
        (2, 32),
        (1, 2, 3),
    )
    with path.open("rb") as file:
        torch.testing.assert_close(read_tensor(file, index["a"]), tensors["a"], rtol=0, atol=0.3)
        assert torch.equal(read_tensor(file, index["b"]), tensors["b"])


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda d: d[:-40], "cut short: a should end"),
        (lambda d: d[:30], "cut short"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "has version 9"),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], "damaged"),
        (lambda d: d.replace(struct.pack("<IQ", 8, 0), struct.pack("<IQ", 16, 0)), "kind 16 of a"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: object, line: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": torch.ones(2, 32)}, quantised=("a",))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=line) as caught:
        read_index(path)
    assert "\n" not in caught.value.line
