"""A command's options: the same from a command line and from a request."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.commands import merge
from dreambooth_core.commands.main import COMMANDS, load, main
from dreambooth_core.commands.options import (
    OWN,
    READ,
    WRITTEN,
    add_options,
    arguments,
    from_arguments,
    from_request,
)
from dreambooth_core.commands.task import TASKS, typed
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.requests import WeightedFile, as_request


def parsed(schema: type, *argv: str) -> Any:
    parser = argparse.ArgumentParser()
    add_options(parser, schema)
    return from_arguments(schema, parser.parse_args(argv))


@pytest.mark.parametrize("task", TASKS)
def test_every_option_is_described(task: str) -> None:
    assert task in COMMANDS
    found = arguments(load(task).Options)
    assert all(each.info.help and each.info.label for each in found)
    assert {each.info.path for each in found} <= {"", *READ, *WRITTEN, *OWN}
    paths = [each for each in found if each.type in ("path", "weighted")]
    assert all(each.info.path for each in paths), "a path without a kind cannot be confined"


def test_both_ways_say_the_same() -> None:
    line = parsed(
        merge.Options,
        *("a.safetensors:0.7", "b:x", "--out", "ab.safetensors", "--method", "ties_svd"),
        *("--rank", "8", "--te-weight", "0.5", "1", "--block", "mid_block=0", "--block", "x=1"),
    )
    request = {
        "adapters": [{"file": "a.safetensors", "weight": 0.7}, {"file": "b:x"}],
        "out": "ab.safetensors",
        "method": "ties_svd",
        "rank": 8,
        "te_weight": [0.5, 1],
        "block": ["mid_block=0", "x=1"],
    }
    assert from_request(merge.Options, request) == line
    assert line.adapters == [WeightedFile(Path("a.safetensors"), 0.7), WeightedFile(Path("b:x"))]


def test_a_flag_in_a_request_is_a_text() -> None:
    name, options = typed(
        as_request("resize", {"source": "--json", "target": Path("--out=/etc/x"), "rank": 4})
    )
    assert (name, options.source, options.target) == (
        "resize",
        Path("--json"),
        Path("--out=/etc/x"),
    )
    assert options.json is True


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "adapters is missing"),
    ({"adapters": []}, "adapters is missing"),
    ({"adapters": "a", "out": "x"}, "is not a list"),
    ({"adapters": ["a:1"], "out": "x"}, "is not an adapter with a weight"),
    ({"adapters": [{"file": "a", "weight": "1"}], "out": "x"}, "weight '1' is not a number"),
    ({"adapters": [{"file": "a", "weight": True}], "out": "x"}, "weight True is not a number"),
    ({"adapters": [{"file": "a", "weight": float("nan")}], "out": "x"}, "not a finite number"),
    ({"adapters": [{"file": "a", "wieght": 1}], "out": "x"}, "each is an object"),
    ({"adapters": [{"file": "a\0b"}], "out": "x"}, "is not a path"),
    ({"adapters": [{"file": "a"}], "out": 5}, "out: 5 is not a path"),
    ({"adapters": [{"file": "a"}], "out": "x", "methd": "svd"}, "Did you mean method"),
    ({"adapters": [{"file": "a"}], "out": "x", "method": "best"}, "is not a choice"),
    ({"adapters": [{"file": "a"}], "out": "x", "rank": 1.5}, "is not a whole number"),
    ({"adapters": [{"file": "a"}], "out": "x", "rank": True}, "is not a whole number"),
    ({"adapters": [{"file": "a"}], "out": "x", "te_weight": ["1", "--out=/x"]}, "is not a number"),
    ({"adapters": [{"file": "a"}], "out": "x", "density": 10**400}, "not a finite number"),
    ({"adapters": [{"file": "a"}], "out": "x", "json": "yes"}, "is not true or false"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_request(merge.Options, options)


def test_options_that_exclude_each_other() -> None:
    schema = load("convert").Options
    with pytest.raises(UserError, match="half and bf16 exclude"):
        from_request(schema, {"source": "a", "target": "b", "half": True, "bf16": True})
    with pytest.raises(SystemExit):
        parsed(schema, "a", "b", "--half", "--bf16")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_no_number_of_a_command_line_is_infinite(value: str) -> None:
    with pytest.raises(SystemExit):
        parsed(merge.Options, "a", "--out", "x", f"--te-weight={value}")


def test_a_request_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(as_request("inspect", {"file": tmp_path / "none.safetensors"})))
    assert main(["task", str(file), "--json"]) == 2
    assert "none.safetensors" in json.loads(capsys.readouterr().out)["error"]["where"]
    for text in ("[]", '{"task": "doctor", "options": {}}', '{"task": [], "options": {}}', "{", ""):
        file.write_text(text)
        assert main(["task", str(file), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["what"]
