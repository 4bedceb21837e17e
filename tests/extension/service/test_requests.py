"""The tools' forms are the commands' own options, and requests are what the engine reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.commands.task import typed
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.requests import WeightedFile, as_request
from extension.service.requests import TOOLS, options, request


class Files:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def read(self, text: str, kind: str) -> Path:
        self.asked.append((kind, text))
        return Path("/read") / text

    def write(self, text: str, kind: str, *, beside: Path | None) -> Path:
        self.asked.append((kind, text))
        return Path("/written") / text


@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_is_described(tool: str) -> None:
    found = options(tool)
    assert all(option.help for option in found)
    assert not {"json", "help", "debug"} & {option.name for option in found}
    assert len([o for o in found if o.type == "output"]) == (tool != "inspect")


def test_kinds() -> None:
    kinds = {option.name: option.type for option in options("merge")}
    assert kinds == {
        "adapters": "weighted",
        "out": "output",
        "method": "choice",
        "rank": "int",
        "density": "float",
        "sign": "choice",
        "seed": "int",
        "base": "file",
        "te_weight": "numbers",
        "block": "list",
        "layout": "choice",
        "dtype": "choice",
    }
    assert {o.name: o.type for o in options("convert")}["half"] == "bool"


def test_every_path_is_confined_by_its_kind() -> None:
    files = Files()
    values = {"adapters": [{"file": "a", "weight": 0.7}], "out": "ab/", "base": "sd.ckpt"}
    made = request("merge", values, files)
    assert files.asked == [("adapter", "a"), ("model", "sd.ckpt"), ("adapter result", "ab/")]
    assert made["adapters"] == [WeightedFile(Path("/read/a"), 0.7)]
    assert (made["base"], made["out"]) == (Path("/read/sd.ckpt"), Path("/written/ab"))
    name, read = typed(as_request("merge", made))
    assert (name, read.method) == ("merge", "cat")
    assert (read.adapters, read.out) == (made["adapters"], made["out"])


ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("merge", {"adapters": [{"file": "a"}], "out": "x", "te_weight": ["1", "--out=/any/path"]}),
    ("merge", {"adapters": ["a:1"], "out": "x"}),
    ("merge", {"adapters": [{"file": "a"}], "out": ["x", "--out=/any"]}),
    ("merge", {"adapters": [{"file": "a"}], "out": "x", "json": True}),
    ("merge", {"adapters": [{"file": "a"}], "out": "x", "--out": "/any"}),
    ("resize", {"source": {"file": "a"}, "target": "x"}),
    ("convert", {"source": "a", "target": "b", "metadata": [["a=b", "--x"]]}),
    ("resize", {"rank": 4, "target": "x"}),
    ("format", {}),
    ("../main", {}),
]


@pytest.mark.parametrize(("tool", "values"), ATTACKS)
def test_what_is_refused(tool: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        request(tool, values, Files())


def test_a_flag_is_a_text() -> None:
    values = {"source": "--json", "target": "--out=/x", "title": "--x", "metadata": ["--a=b"]}
    made = request("convert", values, Files())
    _, read = typed(as_request("convert", made))
    assert (read.source, read.target) == (Path("/read/--json"), Path("/written/--out=/x"))
    assert (read.title, read.metadata) == ("--x", ["--a=b"])
