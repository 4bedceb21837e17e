"""A base in several files: which are named, what they are, and what is asked of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfy_nodes import bases, engine, requests
from comfy_nodes.bases import SplitBase
from comfy_nodes.concepts import Concept
from comfy_nodes.requests import Draft
from dreambooth_core.errors import UserError


@pytest.fixture
def files(host: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders with a file each; the engine says what they are."""
    models: Path = host.root / "models"
    for name in (
        "diffusion_models/z.safetensors",
        "text_encoders/qwen.safetensors",
        "vae/ae.safetensors",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(name.encode())
    (host.root / "comfy" / "text_encoders" / "qwen25_tokenizer").mkdir(parents=True)

    def inspect(name: str, options: dict[str, Any]) -> dict[str, str]:
        qwen = options["file"].parent.name == "text_encoders"
        place = {"tokenizer": "comfy/text_encoders/qwen25_tokenizer"} if qwen else {}
        return {"label": "a text encoder" if qwen else "a denoiser of Z-Image", **place}

    monkeypatch.setattr(engine, "task", inspect)
    return models


NAMED = {"diffusion_model": "z.safetensors", "text_encoder_1": "qwen.safetensors"}


def test_the_tokenizer_is_the_hosts_own(files: Path, host: Any, run: Any) -> None:
    (base,) = run("DreamBoothBaseFiles", vae="ae.safetensors", **NAMED)
    tokenizer = host.root / "comfy" / "text_encoders" / "qwen25_tokenizer"
    assert base.values == {
        "base.model": str(files / "diffusion_models" / "z.safetensors"),
        "base.text_encoders": [str(files / "text_encoders" / "qwen.safetensors")],
        "base.vae": str(files / "vae" / "ae.safetensors"),
        "base.tokenizer": str(tokenizer),
    }
    assert run.lines == [
        "z.safetensors: a denoiser of Z-Image",
        "qwen.safetensors: a text encoder",
        f"tokenizer: {tokenizer}",
    ]


def test_one_file_may_hold_all(files: Path, run: Any) -> None:
    (base,) = run("DreamBoothBaseFiles", diffusion_model="z.safetensors")
    assert set(base.values) == {"base.model"}


def test_stable_diffusion_3_has_three_text_encoders(files: Path, run: Any) -> None:
    names = [f"{name}.safetensors" for name in ("clip_l", "clip_g", "t5")]
    for name in names:
        (files / "text_encoders" / name).write_bytes(b"")
    three = {f"text_encoder_{i}": name for i, name in enumerate(names, 1)}
    (base,) = run("DreamBoothBaseFiles", diffusion_model="z.safetensors", **three)
    assert [Path(path).name for path in base.values["base.text_encoders"]] == names


def test_what_is_not_there_is_named(files: Path, host: Any, run: Any) -> None:
    with pytest.raises(UserError, match="no such file among the vae"):
        run("DreamBoothBaseFiles", vae="gone.safetensors", **NAMED)
    (host.root / "comfy" / "text_encoders" / "qwen25_tokenizer").rmdir()
    with pytest.raises(UserError, match="has no tokenizer qwen25_tokenizer") as caught:
        run("DreamBoothBaseFiles", vae="ae.safetensors", **NAMED)
    assert caught.value.where == "Split Files (DreamBooth), Tokenizer"


def test_another_file_is_another_training(
    files: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def whole(config: dict[str, Any], *_: Any) -> dict[str, Any]:
        asked.append(config)
        return {"run.steps": 5}

    monkeypatch.setattr(requests, "whole", whole)
    (base,) = run("DreamBoothBaseFiles", vae="ae.safetensors", **NAMED)
    concept = Concept({"images": "x"}, "auto", "1")

    def key(given: SplitBase) -> str:
        return Draft("a", given, [concept], None).request().key

    before, seen = key(base), bases.look_at_files(vae="ae.safetensors", **NAMED)
    assert asked[0]["base"]["vae"] == base.values["base.vae"]
    assert key(base) == before
    (files / "vae" / "ae.safetensors").write_bytes(b"another")
    assert key(base) != before
    assert bases.look_at_files(vae="ae.safetensors", **NAMED) != seen
