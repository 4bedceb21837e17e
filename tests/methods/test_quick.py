"""The short way through a LoRA layer is peft's to the bit, and taken by plain layers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from dreambooth_core.methods.quick import quicken


def adapted(**options: Any) -> nn.Sequential:
    """Two layers with an adapter that changes something."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)).requires_grad_(False)
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["0", "1"]} | options)
    inject_adapter_in_model(config, model, adapter_name="mine")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def answers(model: nn.Sequential, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    model.zero_grad()
    output = model(inputs)
    output.float().square().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [output.detach(), inputs.grad, *gradients]


def equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.fixture
def peft_calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every pass through peft's own way."""
    calls: list[None] = []
    forward = Linear.forward

    def counted(self: Linear, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Linear, "forward", counted)
    return calls


@pytest.mark.parametrize("alpha", [2, 3])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_it_is_pefts_to_the_bit(peft_calls: list[None], alpha: int, base: torch.dtype) -> None:
    model = adapted(lora_alpha=alpha)
    for layer in model:
        layer.base_layer.to(base)
    wanted = answers(model, base)
    assert len(peft_calls) == 2
    assert quicken(model) == 2
    equal(answers(model, base), wanted)
    assert len(peft_calls) == 2
    assert all(isinstance(layer, Linear) for layer in model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(torch.ones(1, 6))
        for layer in model:
            layer.__class__ = Linear
        equal([found], [model(torch.ones(1, 6))])


def _off(model: nn.Sequential) -> None:
    layer: Any
    for layer in model:
        layer._disable_adapters = True


def _second(model: nn.Sequential) -> None:
    config = LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False)
    inject_adapter_in_model(config, model, adapter_name="second")
    layer: Any
    for layer in model:
        layer.set_adapter(["mine", "second"])


def _merged(model: nn.Sequential) -> None:
    layer: Any
    for layer in model:
        layer.merge()


@pytest.mark.parametrize("change", [_off, _second, _merged])
def test_a_layer_that_is_more_than_plain_goes_pefts_way(
    peft_calls: list[None], change: Callable[[nn.Sequential], None]
) -> None:
    model, other = adapted(), adapted()
    quicken(model)
    for each in (model, other):
        torch.manual_seed(2)
        change(each)
    wanted = answers(other)
    peft_calls.clear()
    equal(answers(model), wanted)
    assert len(peft_calls) == 2


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_dropout_and_variants_go_pefts_way(peft_calls: list[None], options: dict[str, Any]) -> None:
    model, other = adapted(**options), adapted(**options)
    quicken(model)
    equal(answers(model), answers(other))
    assert len(peft_calls) == 4
