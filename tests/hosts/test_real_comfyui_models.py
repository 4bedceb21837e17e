"""ComfyUI's own detection knows the files of full results, and every key has its place."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from dreambooth_core.families.registry import FAMILIES
from tests.families.host_files.test_names import REAL
from tests.hosts import comfyui_host

pytestmark = pytest.mark.host

PROBE = Path(__file__).with_name("comfyui_models.py")
FEW = ("num_layers", "num_single_layers", "n_layers")
CLASSES = {
    "flux": "Flux",
    "chroma": "Chroma",
    "sd3": "SD3",
    "lumina2": "Lumina2",
    "qwen_image": "QwenImage",
    "hidream": "HiDream",
}
"""ComfyUI's class, of families that it has had since 0.3.64."""


def shapes(name: str) -> dict[str, list[int]]:
    """Names and sizes in a full result's file: as wide as the real model, of two blocks a kind."""
    family = FAMILIES[name]
    assert family.files is not None
    kind = getattr(diffusers, family.classes["transformer"].rpartition(".")[2])
    values = {**REAL[name], "dual_attention_layers": (0,)} if name == "sd3" else REAL[name]
    few = {} if name == "hidream" else dict.fromkeys(FEW, 2)  # of which it takes all for granted
    if name == "sd3":
        few = dict.fromkeys(FEW, 24)  # by whose number ComfyUI knows its width
    with torch.device("meta"):
        known = kind.__init__.__wrapped__.__code__.co_varnames
        model = kind(**{**values, **{key: n for key, n in few.items() if key in known}})
    stored = family.files.to_hosts(model.state_dict())
    return {key: list(tensor.shape) for key, tensor in stored.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    host = comfyui_host.folder()
    task = tmp_path_factory.mktemp("models") / "task.json"
    task.write_text(json.dumps({name: shapes(name) for name in CLASSES}), encoding="utf-8")
    done = subprocess.run(
        [comfyui_host.python(host), str(PROBE), str(task)],
        cwd=host,
        env=comfyui_host.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_a_full_result_is_known_and_whole(name: str, answers: dict[str, Any]) -> None:
    nothing: list[str] = []
    assert answers[name] == {
        "class": CLASSES[name],
        "missing": nothing,
        "left": nothing,
        "wrong": nothing,
    }
