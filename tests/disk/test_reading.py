"""Files of others: what is no file is said at once, and JSON has limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.disk.reading import MAX_JSON, parse_json, read_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.formats import pickles, storage
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.formats.folders import read_scheduler
from tests.helpers.mutations import mutated

READERS = (storage.read_tensors, pickles.read_pickle, identify, read_json, read_embedding)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX has pipes among its files")
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path, read):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="this is a pipe, not a file"):
        read(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="this is a device, not a file"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_nothing_and_a_path_that_is_none(tmp_path: Path, read):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "inside", tmp_path / "a\0b"):
        with pytest.raises(UserError, match=r"no such file|could not read"):
            read(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "no object"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "not a number"),
        ('{"a": 1e999}', "not a number"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"\\ud800": 1}', "surrogate"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": [' + "[]," * 1_000_000 + "[]]}", "too many"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_readers_disagree_on_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_of_any_sensible_kind_is_read(tmp_path: Path):
    (tmp_path / "a.json").write_bytes('\ufeff{"a": [1, 2.5, null, "ä\\ud83d\\ude00"]}'.encode())
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None, "ä😀"]}


def test_infinity_is_left_out_where_it_is_a_default(tmp_path: Path):
    """DPM-Solver's, as diffusers writes it in every folder with that sampler; no other."""
    file = tmp_path / "a.json"
    file.write_text('{"lambda_min_clipped": -Infinity, "shift": 3.0}')
    assert read_scheduler(file) == {"shift": 3.0}
    for text, said in {
        '{"shift": NaN}': "NaN is not a number",
        '{"beta_end": Infinity}': "beta_end is infinite",
        '{"lambda_min_clipped": 1, "inner": {"beta_end": -Infinity}}': "beta_end is infinite",
        '{"betas": [Infinity]}': "an infinity is in a list",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_scheduler(file)


def test_a_huge_json_is_not_read(tmp_path: Path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MAX_JSON + 1)
    with pytest.raises(UserError, match="too large"):
        read_json(tmp_path / "a.json")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_json_is_read_or_refused_in_one_way(data):
    text = data.draw(mutated(b'{"a": [1, -2.5e3, true], "b": {"c": "\\u00e4", "d": null}}'))
    try:
        assert isinstance(parse_json(text), dict)
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
