"""Forge's side: it manages memory itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dreambooth_core.errors import UserError
from extension.host import find
from extension.host.forge import Forge

Module = Callable[[str], ModuleType]


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def host(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> Forge:
    """The stand-in, with what Forge has besides."""
    packages = tmp_path / "forge"
    for name in ("modules_forge", "backend"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(packages)
    entry, memory = ModuleType("modules_forge.main_entry"), ModuleType("backend.memory_management")
    entry.checkpoint_change = lambda name: calls.append(f"change {name}")  # type: ignore[attr-defined]
    entry.refresh_model_loading_parameters = lambda: calls.append("refresh")  # type: ignore[attr-defined]
    memory.unload_all_models = lambda: calls.append("unload")  # type: ignore[attr-defined]
    memory.soft_empty_cache = lambda: calls.append("empty")  # type: ignore[attr-defined]
    for given in (entry, memory):
        monkeypatch.setitem(sys.modules, given.__name__, given)
        parent = __import__(given.__name__.partition(".")[0])
        setattr(parent, given.__name__.partition(".")[2], given)
    models, processing = module("sd_models"), ModuleType("modules.processing")

    def reload() -> Any:
        calls.append("reload")
        if (tmp_path / "refuse").exists():
            raise ValueError("Failed to recognize model type!")

    models.forge_model_reload = processing.forge_model_reload = reload  # type: ignore[attr-defined]
    models.model_data = SimpleNamespace(sd_model="model", forge_hash="hash")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules.processing", processing)
    module("paths_internal")
    folder = tmp_path / "webui" / "models" / "Stable-diffusion"
    (folder / "a.safetensors").touch()
    (folder / "b.safetensors").touch()
    found = find()
    assert type(found) is Forge
    return found


def test_a_checkpoint_is_chosen_and_loaded(
    host: Forge, module: Module, calls: list[str], tmp_path: Path
) -> None:
    path = host.checkpoints()[1].path
    host.select_checkpoint(path)
    assert calls == ["change b.safetensors", "refresh", "reload"]
    (tmp_path / "refuse").touch()
    with pytest.raises(UserError, match="Failed to recognize model type"):
        host.select_checkpoint(path)
    assert module("sd_models").model_data.forge_hash == ""  # a failed one is not taken for loaded


def test_neo_keeps_lists_of_folders_and_a_checkpoint_for_each_preset(
    host: Forge, module: Module, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, entry = module("shared"), sys.modules["modules_forge.main_entry"]
    for name in ("ckpt_dir", "lora_dir"):
        monkeypatch.delattr(shared.cmd_opts, name)
    monkeypatch.delattr(shared.cmd_opts, "embeddings_dir")
    usual = host.folders()
    assert usual.checkpoints == tmp_path / "webui" / "models" / "Stable-diffusion"
    assert usual.loras == tmp_path / "webui" / "models" / "Lora"
    for name in ("ckpt_dirs", "lora_dirs", "vae_dirs", "text_encoder_dirs"):
        setattr(shared.cmd_opts, name, [str(tmp_path / name), str(tmp_path / f"more_{name}")])
    given = host.folders()
    assert (given.checkpoints, given.loras) == (tmp_path / "ckpt_dirs", tmp_path / "lora_dirs")
    readable = {"more_ckpt_dirs", "more_lora_dirs", "vae_dirs", "text_encoder_dirs"}
    assert readable <= {path.name for path in given.models}

    def change(ckpt_name: str, preset: str, save: bool = True, refresh: bool = True) -> bool:
        calls.append(f"change {ckpt_name} of {preset}")
        return True

    monkeypatch.setattr(entry, "checkpoint_change", change)
    shared.opts.data["forge_preset"] = "xl"
    shared.cmd_opts.ckpt_dir = None
    host.select_checkpoint(host.checkpoints()[1].path)
    assert calls == ["change b.safetensors of xl", "refresh", "reload"]


def test_everything_is_unloaded(host: Forge, module: Module, calls: list[str]) -> None:
    data = module("sd_models").model_data
    assert "come back" in host.release("ram")
    assert (calls, data.sd_model) == (["unload", "empty"], "model")
    host.release("unload")
    assert (data.sd_model, data.forge_hash) == (None, "")
    host.restore()


def test_the_gate_is_before_every_picture(host: Forge, module: Module, calls: list[str]) -> None:
    models, processing = module("sd_models"), sys.modules["modules.processing"]
    original = models.forge_model_reload

    def refuse() -> None:
        raise RuntimeError("training")

    host.guard(refuse)
    for place in (models, processing):
        with pytest.raises(RuntimeError, match="training"):
            place.forge_model_reload()
    host.guard(lambda: calls.append("asked"))
    processing.forge_model_reload()  # type: ignore[attr-defined]
    assert calls == ["asked", "reload"]
    host.guard(None)
    assert models.forge_model_reload is processing.forge_model_reload is original  # type: ignore[attr-defined]
