"""Publishing: refused before training where it cannot work; a card that says everything."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from helpers.runs import config_for, train

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import read_receipt
from dreambooth_core.trainer.publish import Facts, model_card

OPTIONS: dict[str, Any] = {
    "publish__repository": "me/ball",
    "publish__licence": "creativeml-openrail-m",
    "publish__consent": "It is my ball: nobody had to agree.",
    "validation__prompts": "[a sks ball on a table]",
    "validation__num_inference_steps": 2,
    "run__steps": 2,
}


class Hub:
    """Stands in for the hub: keeps what it is given."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        assert private
        return SimpleNamespace(repo_id=repo_id)

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str) -> None:
        assert repo_id == "me/ball"
        Hub.files[path_in_repo] = Path(path_or_fileobj).read_bytes()


class Unreachable(Hub):
    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        raise ConnectionError("no route to host")


def test_a_result_is_published_with_its_card(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.files = {}
    folder = train(config_for(base, pictures, tmp_path, **OPTIONS))
    assert set(Hub.files) == {"run.safetensors", "images/step-000002-00.png", "README.md"}
    card = Hub.files["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert "base_model" not in meta  # a folder of this machine
    assert meta["license"] == "creativeml-openrail-m"
    assert meta["instance_prompt"] == "a photo of sks ball"
    assert meta["widget"][0]["text"] == "a sks ball on a table"
    for words in ("a photo of a ball", "| steps | 2 |", "| rank | 4 |", "nobody had to agree"):
        assert words in text
    assert "secret" not in folder.config.read_text() + card
    assert "published" in read_receipt(folder)


@pytest.mark.parametrize(
    ("family", "tag"),
    [
        ("sd1", "stable-diffusion"),
        ("sdxl", "stable-diffusion-xl"),
        ("flux", "flux"),
        ("qwen_image", "qwen-image"),
        ("of_a_plugin", "of-a-plugin"),
    ],
)
def test_the_hub_lists_it_under_its_family(
    base: Path, pictures: Path, tmp_path: Path, family: str, tag: str
) -> None:
    card = model_card(config_for(base, pictures, tmp_path, **OPTIONS), Facts(family, 1, []))
    tags = yaml.safe_load(card.split("---\n", 2)[1])["tags"]
    assert tags == ["text-to-image", "dreambooth", tag, "lora"]


def test_a_hub_out_of_reach_is_a_warning(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    folder = train(config_for(base, pictures, tmp_path, **OPTIONS))
    assert any("no route" in e["message"] for e in folder.events if e["kind"] == "warning")
    assert (folder.path / "run.safetensors").is_file()


@pytest.mark.parametrize(
    ("missing", "named"),
    [("publish__licence", "licence"), ("publish__consent", "consent"), ("token", "token")],
)
def test_what_is_missing_is_named_before_training(
    missing: str, named: str, base: Path, pictures: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    token = None if missing == "token" else "secret"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    options = {**OPTIONS, **({missing: ""} if missing in OPTIONS else {})}
    with pytest.raises(UserError, match=named):
        train(config_for(base, pictures, tmp_path, **options))
    assert not list(tmp_path.rglob("*.png"))


def test_wandb_that_is_missing_is_named(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(config_for(base, pictures, tmp_path, log__wandb="true"))


def test_curves_go_to_wandb(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []
    ended: list[bool] = []
    there = SimpleNamespace(
        log=lambda values, step: seen.append((step, values)), finish=lambda: ended.append(True)
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: there))
    train(config_for(base, pictures, tmp_path, log__wandb="true", run__steps=2))
    assert [step for step, _ in seen] == [1, 2]
    assert seen[0][1]["loss/total"] > 0
    assert ended
