"""diffusers' own loaders take what is written for them, and what the host table says they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreambooth_core.families.names import NAMES, LayerNames
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.hosts import judge
from dreambooth_core.formats.adapters.model import LoraWeights
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import relative
from tests.helpers.family_adapters import family_adapter

LOADERS = {
    "flux": "FluxLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "z_image": "ZImageLoraLoaderMixin",
    "qwen_image": "QwenImageLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "sana": "SanaLoraLoaderMixin",
    "hidream": "HiDreamImageLoraLoaderMixin",
    "ideogram4": "Ideogram4LoraLoaderMixin",
}


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "kohya"])
@pytest.mark.parametrize("names", NAMES.ours().values(), ids=lambda names: names.family)
def test_loaded_as_told(names: LayerNames, layout: str, tmp_path: Path) -> None:
    """Where the table says that diffusers loads the whole file, it does, with equal changes."""
    loaders = pytest.importorskip("diffusers.loaders.lora_pipeline")
    # Their converters know the real sizes alone.
    width = {"lumina2": 2304, "flux": 3072, "chroma": 3072}.get(names.family, 12)
    only = ("to_q", "to_k", "to_v", "to_out.0", "proj_mlp")
    adapter = family_adapter(names, only=only, width=width, blocks=1)
    path = write_adapter(adapter, tmp_path / "a.safetensors", layout)
    shapes = {k: tuple(e.shape) for k, e in storage.read_header(path).tensors.items()}
    told = next(each for each in judge(shapes, names.family) if each.host == "diffusers")
    if told.loaded < told.total:
        assert layout != "diffusers", told.text
        return
    tensors = {k: t.clone() for k, t in storage.read_tensors(path).items()}
    found = getattr(loaders, LOADERS[names.family]).lora_state_dict(tensors)
    state = found[0] if isinstance(found, tuple) else found
    for name, weights in adapter.modules.items():
        assert isinstance(weights, LoraWeights)
        up, down, _ = weights.low_rank()
        probe = torch.linspace(-1, 1, down.shape[1])
        made = state[f"{name}.lora_B.weight"] @ (state[f"{name}.lora_A.weight"] @ probe)
        assert relative(made, up @ (down @ probe)) < 1e-5, name
    assert len(state) == 2 * len(adapter.modules)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
