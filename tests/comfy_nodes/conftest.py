"""ComfyUI as far as the nodes know it: folders, progress, interruption, and patches that count."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


class Interrupted(Exception):
    """The host's exception for its cancel button."""


@dataclass
class Host:
    """What the stand-in was told, and what it saw."""

    root: Path
    interrupt_at: float = float("inf")
    """The progress at which somebody presses the button."""
    shown: list[tuple[float, float, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    sent: list[tuple[str, Any]] = field(default_factory=list)
    """Messages to the page."""
    freed: int = 0

    @property
    def output(self) -> Path:
        return self.root / "output"

    def loras(self) -> Path:
        return self.root / "models" / "loras"

    def checkpoints(self) -> Path:
        return self.root / "models" / "checkpoints"


class Blocker:
    """What the host does not run."""

    def __init__(self, message: str | None) -> None:
        self.message = message


class Tokenizer:
    """Of a CLIP: its tokens are the prompt's words."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False) -> list[str]:
        return text.split()


class Patcher:
    """A MODEL or CLIP: a name and the patches on it."""

    def __init__(self, name: str, patches: dict[str, list[Any]] | None = None) -> None:
        self.name = name
        self.patches = dict(patches or {})
        self.tokenizer = Tokenizer()

    def clone(self) -> Patcher:
        made = Patcher(self.name, self.patches)
        made.tokenizer = self.tokenizer
        return made


def _folder_paths(host: Host) -> types.ModuleType:
    module = types.ModuleType("folder_paths")

    def folders(kind: str) -> list[str]:
        return [str(host.root / "models" / kind)]

    def names(kind: str) -> list[str]:
        folder = host.root / "models" / kind
        found = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".ckpt")]
        return sorted(p.relative_to(folder).as_posix() for p in found)

    def full_path(kind: str, name: str) -> str | None:
        path = host.root / "models" / kind / name
        return str(path) if path.is_file() else None

    made: dict[str, Any] = {
        "base_path": str(host.root),
        "get_output_directory": lambda: str(host.output),
        "get_input_directory": lambda: str(host.root / "input"),
        "get_input_subfolders": lambda: [
            p.name for p in (host.root / "input").iterdir() if p.is_dir()
        ],
        "get_folder_paths": folders,
        "get_filename_list": names,
        "get_full_path": full_path,
    }
    for name, value in made.items():
        setattr(module, name, value)
    return module


def _comfy(host: Host) -> dict[str, types.ModuleType]:
    def throw() -> None:
        if host.shown and host.shown[-1][0] >= host.interrupt_at:
            raise Interrupted("somebody pressed the button")

    class ProgressBar:
        def __init__(self, total: int, node_id: str | None = None) -> None:
            self.total = total

        def update_absolute(self, value: float, total: float, preview: Any = None) -> None:
            host.shown.append((value, total, preview))
            throw()

    def unload() -> None:
        host.freed += 1

    def load(path: str, **_: Any) -> tuple[Patcher, Patcher, str, None]:
        name = Path(path).name
        return Patcher(name), Patcher(name), f"vae of {name}", None

    def load_torch_file(path: str, **_: Any) -> dict[str, Any]:
        from dreambooth_core.formats.storage import read_tensors

        return dict(read_tensors(path))

    def patch(model: Any, clip: Any, state: dict[str, Any], unet: float, text: float) -> Any:
        def add(owner: Any, prefix: str, strength: float) -> Any:
            found = {k: [strength] for k in state if k.startswith(prefix)}
            return Patcher(owner.name, {**owner.patches, **found}) if owner else None

        return add(model, "lora_unet_", unet), add(clip, "lora_te_", text)

    modules = {
        name: types.ModuleType(name)
        for name in ("comfy", "comfy.sd", "comfy.utils", "comfy.model_management", "comfy.samplers")
    }
    graph = types.ModuleType("comfy_execution.graph")
    graph.ExecutionBlocker = Blocker  # type: ignore[attr-defined]
    parts: dict[str, dict[str, Any]] = {
        "comfy.sd": {"load_checkpoint_guess_config": load, "load_lora_for_models": patch},
        "comfy.utils": {"ProgressBar": ProgressBar, "load_torch_file": load_torch_file},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": throw,
            "processing_interrupted": lambda: False,
            "interrupt_current_processing": lambda value: None,
            "unload_all_models": unload,
            "get_torch_device": lambda: types.SimpleNamespace(type="cpu"),
            "soft_empty_cache": lambda: None,
        },
        "comfy.samplers": {
            "KSampler": types.SimpleNamespace(SAMPLERS=["euler", "ddim"], SCHEDULERS=["simple"])
        },
    }
    for name, members in parts.items():
        for member, value in members.items():
            setattr(modules[name], member, value)
        setattr(modules["comfy"], name.split(".")[1], modules[name])
    return {**modules, "comfy_execution.graph": graph}


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """Where the ComfyUI lies."""
    return tmp_path / "comfyui"


@pytest.fixture
def host(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A ComfyUI with empty folders, whose engine is this environment."""
    made = Host(comfyui)
    for name in ("input", "output", "models/loras", "models/checkpoints", "models/diffusers"):
        (made.root / name).mkdir(parents=True, exist_ok=True)
    server = types.ModuleType("server")

    def say(text: str, node: str) -> None:
        made.said.append(text)

    def send(event: str, data: Any, client: str | None) -> None:
        made.sent.append((event, json.loads(json.dumps(data))))

    instance = types.SimpleNamespace(send_progress_text=say, send_sync=send, client_id="page")
    server.PromptServer = types.SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    modules = {"folder_paths": _folder_paths(made), "server": server, **_comfy(made)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    # The environment that runs the tests has everything that the engine needs.
    monkeypatch.setenv("DREAMBOOTH_ENV", sys.prefix)
    yield made


@pytest.fixture
def pictures(host: Host) -> Path:
    """Three pictures in a folder of the input folder."""
    folder = host.root / "input" / "ball"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run(host: Host) -> Callable[..., Any]:
    """Runs a node by its id, defaults filled in, in the older schema's class."""
    from comfy_nodes import mappings
    from comfy_nodes.description import TOLD

    classes, _ = mappings()

    def call(node_id: str, **inputs: Any) -> tuple[Any, ...]:
        kind = classes[node_id]
        given = {i.id: i.default for i in kind.NODE.inputs if not i.optional}  # type: ignore[attr-defined]
        answer = getattr(kind(), kind.FUNCTION)(unique_id="7", **{**given, **inputs})  # type: ignore[attr-defined]
        call.lines = answer["ui"]["text"]  # type: ignore[attr-defined]
        result: tuple[Any, ...] = answer["result"]
        if TOLD in kind.NODE.outputs:  # type: ignore[attr-defined]
            assert result[-1] == "\n".join(call.lines)  # type: ignore[attr-defined]
            return result[:-1]
        return result

    return call
