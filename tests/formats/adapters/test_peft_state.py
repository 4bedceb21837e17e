"""What peft has put into a real model comes out as weights that do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import Tensor, nn

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter, Weights
from dreambooth_core.formats.adapters.peft_state import from_peft
from dreambooth_core.formats.adapters.read import is_adapter_folder, read_adapter
from tests.helpers.adapters import models_of

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
ALL = [*ATTENTION, "conv1", "conv2", "conv_shortcut", "proj_in", "time_emb_proj", "conv"]
RANDOM: dict[str, Any] = {"target_modules": ALL, "init_weights": False}

CONFIGS = {
    "lora": LoraConfig(r=4, lora_alpha=3, target_modules=ALL, init_lora_weights=False),
    "rslora": LoraConfig(
        r=4, lora_alpha=3, use_rslora=True, target_modules=ALL, init_lora_weights=False
    ),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=3,
        rank_pattern={"to_q": 2},
        alpha_pattern={"to_k": 7},
        target_modules=ALL,
        init_lora_weights=False,
    ),
    "dora": LoraConfig(
        r=4, lora_alpha=8, use_dora=True, target_modules=ALL, init_lora_weights=False
    ),
    "loha": LoHaConfig(r=4, alpha=3, **RANDOM),
    "loha tucker": LoHaConfig(r=4, alpha=3, use_effective_conv2d=True, **RANDOM),
    "lokr": LoKrConfig(r=2, alpha=3, **RANDOM),
    "lokr both": LoKrConfig(r=2, alpha=3, decompose_both=True, use_effective_conv2d=True, **RANDOM),
    "lokr full": LoKrConfig(r=64, alpha=3, **RANDOM),
    "oft": OFTConfig(r=0, oft_block_size=4, target_modules=ATTENTION, init_weights=False),
    "oft exact": OFTConfig(
        r=0,
        oft_block_size=4,
        use_cayley_neumann=False,
        target_modules=ATTENTION,
        init_weights=False,
    ),
    "oft shared": OFTConfig(
        r=0,
        oft_block_size=4,
        block_share=True,
        num_cayley_neumann_terms=3,
        target_modules=ATTENTION,
        init_weights=False,
    ),
}


def output(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        return unet(x, 3, context).sample


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_model_does_the_same(kind: str) -> None:
    torch.manual_seed(0)
    plain, trained = models_of("sd1")["unet"], models_of("sd1")["unet"]
    before = output(plain)
    inject_adapter_in_model(CONFIGS[kind], trained)
    expected = output(trained.eval())
    weights = from_peft("unet", trained)
    AdapterStack({"unet": plain}).load("peft", Adapter(weights))
    effect = float((expected - before).norm())
    assert effect > 1e-4
    assert float((output(plain) - expected).norm()) < 1e-3 * effect
    assert not any(t.requires_grad for w in weights.values() for t in w.tensors().values())


def test_alpha_is_the_configured_one_whatever_weight_it_runs_at() -> None:
    unet = models_of("sd1")["unet"]
    inject_adapter_in_model(CONFIGS["patterns"], unet)
    for module in unet.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.25)
    found = from_peft("unet", unet)
    assert {(w.rank, w.alpha) for w in found.values()} == {(4, 3.0), (2, 3.0), (4, 7.0)}


def test_text_encoders_have_canonical_names() -> None:
    models = models_of("sdxl")
    config = LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    for component in ("text_encoder", "text_encoder_2"):
        inject_adapter_in_model(config, models[component])
        names = set(from_peft(component, models[component]))
        assert f"{component}.text_model.encoder.layers.0.self_attn.q_proj" in names
        assert all(name.startswith(f"{component}.text_model.encoder.layers.") for name in names)


def test_only_the_named_adapter_is_taken() -> None:
    unet = models_of("sd1")["unet"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), unet, adapter_name="dog")
    inject_adapter_in_model(LoraConfig(r=3, target_modules=["to_k"]), unet, adapter_name="cat")
    assert {w.rank for w in from_peft("unet", unet, "dog").values()} == {2}
    assert from_peft("unet", unet) == {}


def test_oft_on_convolutions_is_refused() -> None:
    unet = models_of("sd1")["unet"]
    config = OFTConfig(r=0, oft_block_size=4, target_modules=["conv1"], init_weights=False)
    inject_adapter_in_model(config, unet)
    with pytest.raises(Unsupported, match="not a weight change"):
        from_peft("unet", unet)


def test_folders_that_peft_saves_load(tmp_path: Path) -> None:
    """As peft's example script saves them, and a second adapter a folder deeper."""
    models = models_of("sd1")
    trained: dict[str, Any] = {}
    for component, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        config = LoraConfig(r=3, lora_alpha=27, target_modules=targets, init_lora_weights=False)
        trained[component] = get_peft_model(models[component], config)
        trained[component].add_adapter("crochet", config)
        trained[component].save_pretrained(tmp_path / component, selected_adapters=["default"])
        deep = tmp_path / "two" / component
        trained[component].save_pretrained(deep, selected_adapters=["crochet"])
    for folder, name in ((tmp_path, "default"), (tmp_path / "two", "crochet")):
        assert is_adapter_folder(folder)
        assert identify(folder).kind == "adapter"
        adapter = read_adapter(folder)
        expected: dict[str, Weights] = {}
        for component, model in trained.items():
            expected |= from_peft(component, model, name)
        assert set(adapter.modules) == set(expected)
        for module, weights in adapter.modules.items():
            assert torch.equal(weights.delta(), expected[module].delta())
