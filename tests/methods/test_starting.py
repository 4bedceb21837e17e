"""A run that starts from an adapter begins as that adapter, whatever the method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.adapters import METHODS, adapter_for, relative, weights_for
from helpers.family_adapters import family_adapter

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.names import names_of
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter, LokrWeights, Weights
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.options import MethodOptions

HOLD = {
    "lora": {"lora"},
    "dora": {"lora", "dora"},
    "loha": {"lora", "loha"},
    "lokr": {"lokr"},
    "full": set(METHODS),
    "oft": set[str](),
}
"""Which kinds of files each method can hold where it is of the file's rank."""


@pytest.fixture
def parts(base: Path) -> Components:
    return load_base(BaseOptions(model=str(base)))


def linear(parts: Components, kind: str, *, rank: int = 4, text: bool = False) -> Adapter:
    """A random adapter of a kind on some layers of a base, its convolutions among them."""
    models = {k: m for k, m in parts.models.items() if text or k == "unet"}
    found = {
        f"{part}.{path}": weight.detach()
        for part, model in models.items()
        for path, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and weight.ndim in (2, 4)
        and not any(word in path for word in ("emb", "conv_"))
    }
    if kind == "lokr":
        # Factored as LyCORIS and peft do by themselves: a quarter of each side on the left.
        torch.manual_seed(0)
        modules: dict[str, Weights] = {
            name: LokrWeights(
                w1=torch.randn(4, 4) * 0.3,
                w2_a=torch.randn(weight.shape[0] // 4, rank),
                w2_b=torch.randn(rank, weight.shape[1] // 4) * 0.1,
                alpha=3.0,
            )
            for name, weight in found.items()
            if name.endswith("attn1.to_q") and weight.shape[0] == 32
        }
        return Adapter(modules, {}, "sd1")
    return adapter_for("sd1", kind, rank=rank, every=5, base=found)


def answers(parts: Components) -> torch.Tensor:
    """What the denoiser says to a fixed question, its conditioning by the text encoder."""
    unet = parts.denoiser.eval()
    generator = torch.Generator().manual_seed(3)
    size = unet.config.sample_size
    noisy = torch.randn(1, 4, size, size, generator=generator)
    text = parts.family.encode(parts, ["a photo of a ball"])
    with torch.no_grad():
        return parts.family.predict(parts, noisy, torch.tensor([500]), text, [], None)


def expected(parts: Components, adapter: Adapter, weight: float) -> torch.Tensor:
    stack = AdapterStack(parts.models)
    stack.load("it", adapter, weight)
    try:
        return answers(parts)
    finally:
        stack.clear()


@pytest.mark.parametrize("method", HOLD)
@pytest.mark.parametrize("kind", METHODS)
def test_the_first_step_is_the_adapter(
    parts: Components, tmp_path: Path, method: str, kind: str
) -> None:
    adapter = linear(parts, kind)
    file = write_adapter(adapter, tmp_path / "it.safetensors", "kohya")
    wanted = expected(parts, adapter, 0.7)
    plain = answers(parts)
    options = MethodOptions(kind=method, rank=4, alpha=6.0, init_from=str(file), init_weight=0.7)
    taken = method_for(options, parts)
    if kind not in HOLD[method]:
        with pytest.raises(UserError) as refused:
            taken.attach(0)
        assert refused.value.where == "method.init_from"
        return
    groups = taken.attach(0)
    assert relative(wanted, plain) > 1e-3
    assert relative(answers(parts), wanted) < 1e-5
    assert groups[0].count > 0


@pytest.mark.parametrize("layout", ["kohya", "peft", "diffusers", "comfyui"])
@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
def test_any_naming_a_smaller_rank_and_the_text_encoder(
    parts: Components, tmp_path: Path, layout: str, method: str
) -> None:
    adapter = linear(parts, "lora", rank=3, text=True)
    path = tmp_path / ("it" if layout == "peft" else "it.safetensors")
    write_adapter(adapter, path, layout)
    wanted = expected(parts, adapter, 1.0)
    options = MethodOptions(
        kind=method, rank=8, alpha=1.0, init_from=str(path), train_text_encoder=True
    )
    method_for(options, parts).attach(0)
    assert relative(answers(parts), wanted) < 1e-5


def test_what_cannot_be_taken_over_is_refused(parts: Components, tmp_path: Path) -> None:
    def refusal(adapter: Adapter, **changes: object) -> str:
        file = write_adapter(adapter, tmp_path / "it.safetensors", "kohya")
        options = MethodOptions(init_from=str(file), **changes)  # type: ignore[arg-type]
        with pytest.raises(UserError) as refused:
            method_for(options, load_base(BaseOptions(model=parts.source))).attach(0)
        assert refused.value.where == "method.init_from"
        return refused.value.line

    assert "higher rank than 2" in refusal(linear(parts, "lora"), rank=2)
    assert "train_text_encoder" in refusal(linear(parts, "lora", text=True))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other = weights_for(torch.zeros(8, 8), "lora")
    assert "but the base's is" in refusal(Adapter({name: other}, {}, "sd1"))
    strange = name.replace("blocks.0.attn1", "blocks.9.attn1")
    assert "made for Stable Diffusion 1 and changes" in refusal(
        Adapter({strange: other}, {}, "sd1")
    )
    names = names_of("flux")
    assert names is not None
    said = refusal(family_adapter(names))
    assert "made for Flux.1 and changes transformer." in said
    assert "which this base does not have" in said


def test_a_file_is_told_before_the_base_has_data(parts: Components, tmp_path: Path) -> None:
    file = write_adapter(linear(parts, "lora"), tmp_path / "it.safetensors", "kohya")
    for model in parts.models.values():
        model.to("meta")
    for kind in ("lora", "dora", "loha", "lokr", "full"):
        again = load_base(BaseOptions(model=parts.source))
        for model in again.models.values():
            model.to("meta")
        method_for(MethodOptions(kind=kind, init_from=str(file)), again).attach(0)
    with pytest.raises(UserError, match="higher rank than 2"):
        method_for(MethodOptions(rank=2, init_from=str(file)), parts).attach(0)
