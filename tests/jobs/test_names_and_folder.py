"""A run's name, its folder and its small files."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt, sanitise, write_receipt
from dreambooth_core.jobs.files import plain


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("my dog", "my dog"),
        ('a/b\\c:d*?"<>|', "a_b_c_d_"),
        ("  .hidden. ", "hidden"),
        ("", "run"),
        ("...", "run"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("com1", "_com1"),
        ("COM¹.x", "_COM¹.x"),
        ("console", "console"),
        ("tab\tline\nend", "tab_line_end"),
        ("é", "é"),
        ("x" * 300, "x" * 80),
        ("x" * 79 + " y", "x" * 79),
        ("../../etc", "_.._etc"),
    ],
)
def test_names_are_made_safe(name: str, clean: str) -> None:
    assert sanitise(name) == clean


@given(st.text(st.characters(exclude_categories=[]), max_size=100))
def test_any_name_becomes_one_that_windows_takes(name: str) -> None:
    clean = sanitise(name)
    assert clean == clean.strip(" .") != ""
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', clean)
    assert len(clean) <= 81
    assert len(clean.encode("utf-8")) <= 161
    assert sanitise(clean) == clean


def test_create_never_takes_an_existing_folder(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, "dog").name for _ in range(3)]
    assert names == ["dog", "dog-2", "dog-3"]
    assert (tmp_path / "dog-3" / "checkpoints").is_dir()


def test_create_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make a folder for runs"):
        RunFolder.create(tmp_path / "file", "dog")


def test_open_tells_a_run_from_other_folders(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dog")
    with pytest.raises(UserError, match="not a run"):
        RunFolder.open(run.path)
    run.config.write_text("")
    assert RunFolder.open(run.path) == run
    with pytest.raises(UserError, match="no such run"):
        RunFolder.open(tmp_path / "cat")


def test_paths_are_named_from_the_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dog")
    assert run.relative(run.samples / "1.png") == "samples/1.png"
    assert run.relative(tmp_path / "x") == (tmp_path / "x").as_posix()
    assert os.fspath(run) == str(run.path)


def test_plain_makes_valid_json_of_anything() -> None:
    class Number:
        def item(self) -> float:
            return 0.5

    value = {"n": math.nan, 1: (math.inf, Path("a/b")), "t": Number(), "s": {3}, "o": object}
    cleaned = plain(value)
    assert cleaned["n"] is None
    assert cleaned["1"] == [None, "a/b"]
    assert (cleaned["t"], cleaned["s"]) == (0.5, [3])
    json.dumps(cleaned, allow_nan=False)


def test_the_receipt_grows(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dog")
    run.config.write_text("a: 1")
    write_receipt(run, versions={"torch": "2"}, steps=5)
    write_receipt(run, versions={"peft": "0.21"}, steps=6)
    receipt = read_receipt(run)
    assert receipt["versions"] == {"torch": "2", "peft": "0.21"}
    assert receipt["steps"] == 6
    assert receipt["dreambooth"] and receipt["platform"]
    assert len(receipt["config_sha256"]) == 64
    run.receipt.write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        read_receipt(run)
    write_receipt(run, steps=7)  # a damaged one is in nobody's way, and kept
    assert read_receipt(run)["steps"] == 7
    assert (run.path / "receipt.damaged.json").read_text() == "["
