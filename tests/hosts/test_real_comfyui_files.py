"""What this program writes, loaded by a real ComfyUI: the effect is the dense computation's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
from dreambooth_core.families.stable_diffusion.single_write import tensors_of, write_single_file
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.formats.adapters.apply import bake
from dreambooth_core.formats.adapters.merge import Part
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights, Weights
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.storage import read_tensors
from tests.helpers.adapters import weights_for
from tests.helpers.reduced_models import full_parts, random_tensors, unet_of
from tests.hosts import comfyui_host

pytestmark = pytest.mark.host

PROBE = Path(__file__).with_name("comfyui_probe.py")
METHODS = ("lora", "dora", "loha", "lokr", "oft")
STRENGTH = 0.7


@dataclass
class Seen:
    """What the host made of the files."""

    parts: ModelParts
    adapters: dict[str, Adapter]
    folder: Path
    report: dict[str, Any]

    def weights(self, name: str) -> dict[str, Tensor]:
        return dict(read_tensors(self.folder / f"{name}.safetensors"))


def smallest() -> ModelParts:
    """The smallest SD1.5 that ComfyUI knows as one: its widths, CLIP-L and its autoencoder."""
    stock = stock_configs("sd1")
    unet = unet_of("sd1", (320, 320), blocks=1, context=768, heads=8)
    configs = {"unet": unet, "text_encoder": stock["text_encoder"], "vae": stock["vae"]}
    components = {
        name: Component(config, random_tensors(name, config, seed=i))
        for i, (name, config) in enumerate(configs.items())
    }
    return ModelParts("sd1", components, default_scheduler("sd1", "epsilon"))


def states(parts: ModelParts) -> dict[str, dict[str, Tensor]]:
    return {n: dict(parts.components[n].tensors) for n in ("unet", "text_encoder")}


def adapter_on(parts: ModelParts, method: str, seed: int) -> Adapter:
    """Random weights on attention, convolutions and the text encoder."""
    modules = {}
    for component, tensors in states(parts).items():
        names = [
            key.removesuffix(".weight")
            for key in tensors
            if key.endswith(("to_q.weight", "to_v.weight", "q_proj.weight", "conv1.weight"))
        ]
        for i, name in enumerate(names):
            weight = tensors[f"{name}.weight"]
            made = weights_for(weight, method, rank=4, alpha=3.0, seed=seed + i)
            if not (weight.ndim == 4 and method in ("dora", "oft")):
                modules[f"{component}.{name}"] = made
    return Adapter(modules, {"ss_output_name": method}, "sd1")


def look(tmp_path: Path) -> Seen:
    parts = smallest()
    checkpoint = tmp_path / "smallest.safetensors"
    write_single_file(parts, checkpoint)
    adapters = {m: adapter_on(parts, m, 100 * i) for i, m in enumerate(METHODS)}
    asked: list[list[Any]] = []
    for method, adapter in adapters.items():
        path = tmp_path / f"kohya-{method}.safetensors"
        write_adapter(adapter, path, "kohya", dtype=torch.float32)
        asked.append([method, str(path), STRENGTH])
    asked.append(["nothing", asked[0][1], 0.0])
    report = ask(tmp_path, {"checkpoint": str(checkpoint), "adapters": asked})
    return Seen(parts, adapters, tmp_path / "seen", report)


def ask(tmp_path: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Runs the probe in the host's Python; its report."""
    host = comfyui_host.folder()
    out = tmp_path / "seen"
    out.mkdir()
    file = tmp_path / "task.json"
    file.write_text(json.dumps({**task, "out": str(out)}), encoding="utf-8")
    done = subprocess.run(
        [comfyui_host.python(host), str(PROBE), str(file)],
        cwd=host,
        env=comfyui_host.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for complaint in ("key not loaded", "not loaded", "ERROR", "shape mismatch"):
        assert complaint not in done.stderr, done.stderr[-3000:]
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """An epsilon model and an adapter of each method, loaded there."""
    yield look(tmp_path_factory.mktemp("comfyui"))


def dense(parts: ModelParts, adapter: Adapter | None, weight: float) -> dict[str, Tensor]:
    """The weights under a checkpoint's names, computed without the host."""
    tensors = states(parts)
    if adapter is not None:
        tensors, _ = bake(tensors, [Part(adapter, weight)])
    components = dict(parts.components)
    for name, state in tensors.items():
        components[name] = Component(components[name].config, state)
    whole = ModelParts("sd1", components, parts.scheduler)
    made = tensors_of(whole, "test", extras="none")
    return {k: v if isinstance(v, Tensor) else v.make() for k, v in made.items()}


def test_a_checkpoint_is_loaded_whole(seen: Seen) -> None:
    assert seen.report["kind"] == "SD15"
    assert seen.report["prediction"] == "EPS"
    assert seen.report["vae"] == "AutoencoderKL"
    expected = dense(seen.parts, None, 0.0)
    loaded = seen.weights("base")
    assert len([k for k in loaded if k.startswith("model.")]) > 100
    for key, value in loaded.items():
        if "position_ids" not in key and "text_projection" not in key:
            assert torch.equal(value, expected[key]), key


def host_delta(method: str, weights: Weights, base: Tensor) -> Tensor:
    """The change that the host makes of a module at ``STRENGTH``.

    It is the dense one but for two habits of this host, which its own nodes have for every file,
    and which this pack's nodes make up for: OFT's strength counts twice, and DoRA's magnitude is
    divided by the norm of the base's rows instead of the changed ones.
    """
    if method == "oft":
        return weights.delta(base) * STRENGTH**2
    if method == "dora":
        assert isinstance(weights, LoraWeights)
        assert weights.dora_scale is not None
        plain = LoraWeights(weights.down, weights.up, weights.alpha).delta(base)
        rows = base.flatten(1).norm(dim=1).reshape(-1, *[1] * (base.ndim - 1))
        return ((base + plain) * weights.dora_scale / rows - base) * STRENGTH
    return weights.delta(base) * STRENGTH


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_has_the_effect_of_the_dense_computation(seen: Seen, method: str) -> None:
    adapter = seen.adapters[method]
    assert seen.report["patched"][method] == len(adapter.modules)
    before = states(seen.parts)
    deltas = {}
    for name, weights in adapter.modules.items():
        component, path = name.split(".", 1)
        deltas[name] = DiffWeights(host_delta(method, weights, before[component][f"{path}.weight"]))
    expected = dense(seen.parts, adapter.with_modules(deltas), 1.0)
    base, loaded = seen.weights("base"), seen.weights(method)
    changed = [key for key in loaded if not torch.equal(loaded[key], base[key])]
    assert len(changed) == len(adapter.modules)
    for key in changed:
        step, wanted = loaded[key] - base[key], expected[key] - base[key]
        assert (step - wanted).norm() / wanted.norm() < 1e-4, key


def test_strength_0_is_the_base(seen: Seen) -> None:
    base, loaded = seen.weights("base"), seen.weights("nothing")
    assert all(torch.equal(loaded[key], base[key]) for key in base)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sdxl_says_what_it_predicts(tmp_path: Path, prediction_type: str) -> None:
    """The host looks for a key that we write. (For SD1.5 it takes everything for epsilon.)"""
    parts = full_parts("sdxl", prediction_type=prediction_type)
    made = tensors_of(parts, "test", extras="none")
    report = ask(tmp_path, {"shapes": {key: list(value.shape) for key, value in made.items()}})
    wanted = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}[prediction_type]
    assert report == {"kind": "SDXL", "prediction": wanted}
