"""ComfyUI's own key tables load what is written, and say the same as ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.families.names import NAMES, LayerNames
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.hosts import judge
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.family_adapters import family_adapter, sizes
from tests.hosts import comfyui_host

pytestmark = pytest.mark.host

PROBE = Path(__file__).with_name("comfyui_key_maps.py")
CLASSES = {
    "flux": "Flux",
    "chroma": "Flux",
    "flux2": "Flux",
    "z_image": "Lumina2",
    "lumina2": "Lumina2",
    "sd3": "SD3",
    "qwen_image": "QwenImage",
    "krea2": "Krea2",
    "hidream": "HiDream",
}
"""ComfyUI's class of the model, on which its tables depend; the others are of none of these."""
LAYOUTS = ("host", "kohya", "comfyui", "diffusers")
BLOCKS, WIDTH = 2, 128
"""ComfyUI cuts Stable Diffusion 3 at 64 rows a block."""
GENERIC = ("qwen_image", "hidream", "anima", "lumina2", "ideogram4")
"""Families whose own names are all that is loaded: no version has a table for them."""
RUN = [names for names in NAMES.working() if "ComfyUI" in names.hosts]


def config(names: LayerNames) -> dict[str, Any]:
    """What the tables ask of a model's configuration."""
    lists = ("depth", "depth_single_blocks", "n_layers", "layers", "n_refiner_layers")
    return {**dict.fromkeys(lists, BLOCKS), "hidden_size": WIDTH, "dim": WIDTH}


def native_keys(names: LayerNames) -> dict[str, tuple[int, int]]:
    """The keys of the host's model."""
    found: dict[str, tuple[int, int]] = {}
    own = sizes(names, WIDTH)
    for template, native in names.layers.items():
        found[native] = own[template]
    for fused in names.fused:
        found[fused.native] = (sum(own[part][0] for part in fused.parts), WIDTH)
    return {
        f"diffusion_model.{key.replace('#', str(block))}.weight": shape
        for key, shape in found.items()
        for block in range(BLOCKS if "#" in key else 1)
    }


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the host says of a file of each family in each layout."""
    host, root = comfyui_host.folder(), tmp_path_factory.mktemp("keys")
    models = []
    for names in RUN:
        adapter = family_adapter(names, blocks=BLOCKS, width=WIDTH)
        files = [
            write_adapter(adapter, root / f"{names.family}-{layout}.safetensors", layout)
            for layout in LAYOUTS
        ]
        models.append(
            {
                "family": names.family,
                "class": CLASSES.get(names.family, "BaseModel"),
                "config": config(names),
                "keys": native_keys(names),
                "files": list(map(str, files)),
            }
        )
    task = root / "task.json"
    task.write_text(json.dumps({"models": models}), encoding="utf-8")
    # The tables need no more than torch: our own Python does.
    done = subprocess.run(
        [sys.executable, str(PROBE), str(task)],
        cwd=host,
        env=comfyui_host.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("names", RUN, ids=lambda names: names.family)
def test_no_key_is_left_over(names: LayerNames, answer: dict[str, Any]) -> None:
    """Of the layout for hosts, kohya's and ComfyUI's, where this version knows the family."""
    for path, missed in answer[names.family]["missed"].items():
        layout = Path(path).stem.split("-")[1]
        if layout == "comfyui" and names.comfyui == "diffusers" and not knows(names, answer):
            continue
        if layout == "host" and names.written == "comfyui" and not knows(names, answer):
            continue
        if layout != "diffusers" and not (layout == "host" and names.unknown_to_hosts):
            assert missed == [], path


@pytest.mark.parametrize("names", RUN, ids=lambda names: names.family)
def test_the_table_of_inspect_is_the_hosts(names: LayerNames, answer: dict[str, Any]) -> None:
    if not knows(names, answer):
        pytest.skip("this ComfyUI is older than the family, or its table than the one that we read")
    for path, missed in answer[names.family]["missed"].items():
        header = storage.read_header(Path(path)).tensors
        shapes = {key: tuple(entry.shape) for key, entry in header.items()}
        told = next(e for e in judge(shapes, names.family) if e.host == "ComfyUI")
        assert told.total - told.loaded == len(missed), (path, told.text, missed[:3])


@pytest.mark.parametrize("names", RUN, ids=lambda names: names.family)
def test_names_and_rows_are_the_hosts(names: LayerNames, answer: dict[str, Any]) -> None:
    """Every layer that the host's table has is ours, under its name, at its rows."""
    table = answer[names.family]["table"]
    if table is None:
        pytest.skip("this ComfyUI has no table for the family")
    own = sizes(names, WIDTH)
    seen = 0
    for key, (target, first, count, swapped) in table.items():
        path = key.removesuffix(".weight")
        layer = names.find(path)
        if path == key or layer is None or layer.path != path:
            continue
        fused = names.fused_of(layer.template)
        if fused is None:
            assert f"{names.native(layer)}.weight" == target
        else:
            assert f"{fused.native.replace('#', str(layer.block))}.weight" == target
            place = fused.parts.index(layer.template)
            assert first == sum(own[part][0] for part in fused.parts[:place])
            assert count == own[layer.template][0]
        assert swapped == (layer.template in names.swapped) or "norm1_context" in layer.template
        seen += 1
    assert seen >= len(names.fused)


def knows(names: LayerNames, answer: dict[str, Any]) -> bool:
    """Whether the host's table is one that ours was read from, not an older one."""
    table = answer[names.family]["table"]
    if names.family == "flux2":
        return bool(table) and any("to_qkv_mlp_proj" in key for key in table)
    return table is not None or names.family in GENERIC
