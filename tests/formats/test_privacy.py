"""Nothing that is passed on tells of the machine that made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth_core.bases.locate import hub_id
from dreambooth_core.formats.privacy import cleaned, telltales, warning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/models/dream.safetensors", "dream.safetensors"),
        ("/home/alice", ""),
        ("C:\\Users\\alice\\", ""),
        ("/home/alice/my own models/dream v2.safetensors", "dream v2.safetensors"),
        ("C:\\Users\\alice\\dream.ckpt", "dream.ckpt"),
        ("D:/models/dream.ckpt", "dream.ckpt"),
        ("\\\\nas\\alice\\dream.ckpt", "dream.ckpt"),
        ("~/models/dream.ckpt", "dream.ckpt"),
        ("file:///home/alice/dream.ckpt", "dream.ckpt"),
        ("trained on /home/alice/dogs with care", "trained on dogs with care"),
        ("from C:\\Users\\alice\\dogs, twice", "from dogs, twice"),
        ("--config=/data/alice/a.toml", "--config=a.toml"),
        ("key $HF_TOKEN and ${HOME} and %USERPROFILE%", "key  and  and "),
        ("hf_abcdefghijklmnopqrstuvwxyz", ""),
    ],
)
def test_of_a_path_only_its_last_name_is_left(text: str, expected: str) -> None:
    assert list(telltales(text))
    assert cleaned(text) == expected
    assert not list(telltales(cleaned(text)))


@pytest.mark.parametrize(
    "text",
    [
        "runwayml/stable-diffusion-v1-5",
        "https://huggingface.co/owner/name",
        "a photo of a sks dog, 50% off, 3/4 view, his/her",
        "black / white",
        "it costs $100 or 5 %",
        "ratio 16:9, w/ hat",
        "(512, 768)",
        "2024-01-02T03:04:05",
        "/",
        ":/ sad",
        "blocks.0.attn/q",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert cleaned(text) == text
    assert warning({"key": text}, "it") is None


def test_json_inside_a_text_stays_json_and_keys_are_cleaned_too() -> None:
    inner = {"/home/alice/dogs and cats": {"n": 3}, "base": "C:\\Users\\al ice\\x.ckpt"}
    found = cleaned({"ss_dataset_dirs": json.dumps(inner), "count": 3})
    assert json.loads(found["ss_dataset_dirs"]) == {"dogs and cats": {"n": 3}, "base": "x.ckpt"}
    assert found["count"] == 3


def test_the_warning_names_one_and_counts_the_rest() -> None:
    said = warning({"a": "/home/alice/x", "b": "/home/alice/y"}, "this file")
    assert said is not None
    assert "/home/alice/x and 1 more" in said


def test_a_base_is_named_as_the_hub_knows_it(tmp_path: Path) -> None:
    assert hub_id("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5"
    assert hub_id("pocket") is None
    assert hub_id(str(tmp_path)) is None
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    assert hub_id(str(snapshot)) == "owner/name"
    (tmp_path / "model_index.json").write_text('{"_name_or_path": "owner/other"}')
    assert hub_id(str(tmp_path)) == "owner/other"
    (tmp_path / "model_index.json").write_text('{"_name_or_path": "/home/alice/other"}')
    assert hub_id(str(tmp_path)) is None
