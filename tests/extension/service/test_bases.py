"""Bases in several files: the host's folders have the other parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.fake_host import FakeHost

from extension.service import bases
from extension.service.studio import Studio

ROOT = Path(__file__).parents[3]


class Engine:
    """Says of a file what ``inspect`` would."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts
        self.asked: list[dict[str, Any]] = []

    def task(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(options)
        return {"kind": "transformer", "parts": self.parts}


FOUND = {
    "family": "z_image",
    "label": "Z-Image",
    "text_encoders": ["/models/text_encoder/qwen.safetensors"],
    "vae": "/models/VAE/ae.safetensors",
    "tokenizer": "/backend/qwen",
    "missing": [],
}


@pytest.fixture
def model(host: FakeHost) -> str:
    path = host.folders().checkpoints / "z.safetensors"
    path.write_bytes(b"a denoiser")
    host.folders().parts[0].mkdir(parents=True)
    return str(path)


def test_the_other_parts_are_the_hosts(
    host: FakeHost, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(FOUND)
    monkeypatch.setattr(bases, "shared", lambda root: engine)
    studio = Studio(ROOT, host)
    info = studio.base_info("z.safetensors")
    assert info.trainable and info.label == "Z-Image"
    assert engine.asked[0]["beside"] == [host.folders().parts[0]], "those that are there"
    values, problems = studio._settle({"base.model": model}, ())
    assert problems == []
    assert values["base.text_encoders"] == FOUND["text_encoders"]
    assert (values["base.vae"], values["base.tokenizer"]) == (FOUND["vae"], FOUND["tokenizer"])
    chosen, _ = studio._settle({"base.model": model, "base.vae": model}, ())
    assert chosen["base.vae"] == model, "a person said so"
    assert len(engine.asked) == 1


def test_what_is_nowhere_is_named(
    host: FakeHost, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = FOUND | {"vae": "", "missing": ["its VAE (in models/VAE)"]}
    monkeypatch.setattr(bases, "shared", lambda root: Engine(lacks))
    info = Studio(ROOT, host).base_info("z.safetensors")
    assert not info.trainable
    assert info.problem == "Z-Image also needs its VAE (in models/VAE)"
