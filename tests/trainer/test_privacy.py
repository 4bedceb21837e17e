"""No result says where it was made, in any layout."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import bare, config_for, train

from dreambooth_core.trainer.publish import CARD, UNPUBLISHED, Facts, model_card

TELLTALE = "telltale"
FULL = {"method__kind": "full"}
WAYS: dict[str, dict[str, Any]] = {
    **{layout: {"save__layout": layout} for layout in ("kohya", "diffusers", "peft")},
    "diffusers' arrangement": {"save__arrangement": "diffusers", "save__also_kohya": "true"},
    "peft's arrangement": {"save__arrangement": "peft"},
    "numbered": {"save__arrangement": "shivam"},
    "whole model": FULL,
    "whole model in diffusers' arrangement": {**FULL, "save__arrangement": "diffusers"},
    "whole model, numbered": {**FULL, "save__arrangement": "shivam"},
    "token": {"method__kind": "pivotal"},
}


@pytest.fixture(scope="module")
def home(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's folder, with a base and images in it."""
    home = tmp_path_factory.mktemp(TELLTALE)
    shutil.copytree(base, home / "base")
    shutil.copytree(pictures, home / "balls")
    return home


@pytest.mark.parametrize("way", WAYS)
def test_no_result_says_where_it_was_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for name in ("HOME", "USER", "USERNAME", "USERPROFILE", "HF_TOKEN"):
        monkeypatch.setenv(name, f"{TELLTALE}-{name}" if name != "HOME" else str(home))
    changes = {
        "run__steps": 1,
        "validation__prompts": "[a sks ball]",
        "validation__num_inference_steps": 1,
        "base__vae": home / "base" / "vae",
        **WAYS[way],
    }
    root = tmp_path / TELLTALE / "runs"
    config = config_for(home / "base", home / "balls", root, **changes)
    with bare():
        folder = train(config)
    private = [pattern for pattern in UNPUBLISHED if pattern not in ("samples/*", "args.json")]
    results = [
        path
        for path in root.rglob("*")
        # A1111 finds a reduced base's text tower only by its whole path, which the yaml beside
        # a single file tells it: that yaml is of use here alone.
        if path.is_file()
        and path.suffix != ".yaml"
        and not any(
            fnmatch(part, pattern.removesuffix("/*"))
            for part in path.relative_to(root).parts
            for pattern in private
        )
    ]
    assert {path.suffix for path in results} >= {".safetensors", ".png"}
    for path in results:
        assert TELLTALE.encode() not in path.read_bytes(), path
    card = model_card(config, Facts("sd1", 1, [folder.path / CARD]))
    assert TELLTALE not in card
    assert "base_model:" not in card
    assert "of `base`" in card
