"""The tools' forms are the command line's, and what they make is what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth_core.errors import UserError
from extension.service.arguments import OUTPUT, TOOLS, arguments, options, parser


def line(tool: str, values: dict[str, object], output: str = "/out.safetensors") -> list[str]:
    return arguments(tool, values, file=lambda text: f"/lora/{text}", output=output)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_argument_is_described(tool: str) -> None:
    found = options(tool)
    assert all(option.help for option in found)
    assert not {"json", "help", "debug"} & {option.name for option in found}
    assert [o.name for o in found if o.type == "output"] == (
        [OUTPUT[tool]] if tool in OUTPUT else []
    )


def test_kinds() -> None:
    kinds = {option.name: option.type for option in options("merge")}
    assert kinds["adapters"] == "weighted"
    assert kinds["method"] == "choice"
    assert kinds["rank"] == "int"
    assert kinds["density"] == "float"
    assert kinds["base"] == "file"
    assert kinds["block"] == "list"
    assert {o.name: o.type for o in options("convert")}["half"] == "bool"


def test_the_command_line_reads_what_is_made() -> None:
    parts = [{"file": "a.safetensors", "weight": 0.7}, ["b.safetensors", "-1"], "c.safetensors:2"]
    values = {
        "adapters": [*parts, "plain.safetensors"],
        "method": "ties_svd",
        "rank": 8,
        "density": "0.25",
        "block": ["mid_block=0", "1:text_encoder=0.5"],
        "te_weight": [0.5, 1, 1, 1],
        "base": "",
        "out": "ignored",
    }
    made = line("merge", values)
    assert made[0] == "merge" and "--json" in made
    read = parser("merge").parse_args(made[1:])
    assert read.adapters == [
        "/lora/a.safetensors:0.7",
        "/lora/b.safetensors:-1.0",
        "/lora/c.safetensors:2.0",
        "/lora/plain.safetensors:1.0",
    ]
    assert (read.method, read.rank, read.density) == ("ties_svd", 8, 0.25)
    assert read.block == ["mid_block=0", "1:text_encoder=0.5"]
    assert read.te_weight == [0.5, 1, 1, 1]
    assert (read.out, read.base) == (Path("/out.safetensors"), None)


def test_a_name_is_no_flag() -> None:
    made = line("convert", {"source": "--json", "half": True, "title": "--x"}, "/--out.ckpt")
    read = parser("convert").parse_args(made[1:])
    assert (read.source, read.target) == (Path("/lora/--json"), Path("/--out.ckpt"))
    assert (read.half, read.bf16, read.title) == (True, False, "--x")


@pytest.mark.parametrize(
    ("tool", "values", "words"),
    [
        ("merge", {}, "adapters is missing"),
        ("merge", {"adapters": ["a"], "methd": "ties"}, "takes no 'methd'"),
        ("merge", {"adapters": ["a"], "method": "best"}, "not a choice"),
        ("merge", {"adapters": ["a"], "rank": "many"}, "not a number"),
        ("merge", {"adapters": [{"file": "a", "weight": "much"}]}, "is no number"),
        ("resize", {"rank": 4}, "source is missing"),
    ],
)
def test_what_is_refused(tool: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        line(tool, values)
