"""Adapters on models: the sum is the sum, and what is taken off leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights
from tests.helpers.adapters import METHODS, adapter_for, models_of


def weights_of(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{c}.{k}": t.clone() for c, m in models.items() for k, t in m.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)


def of(models: dict[str, nn.Module], name: str) -> Tensor:
    component, path = name.split(".", 1)
    model = models[component]
    try:
        return model.get_submodule(path).weight.detach()  # type: ignore[return-value]
    except AttributeError:
        return model.get_submodule(path.removeprefix("text_model.")).weight.detach()  # type: ignore


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_adapter_and_back(method: str, dtype: torch.dtype) -> None:
    models = {n: m.to(dtype) for n, m in models_of("sd1").items()}
    before = weights_of(models)
    adapter = adapter_for("sd1", method, every=3)
    originals = {n: of(models, n).clone() for n in adapter.modules}
    stack = AdapterStack(models)
    stack.load("a", adapter, 0.5)
    for name, weights in adapter.modules.items():
        exact = originals[name].float() + 0.5 * weights.delta(originals[name])
        assert torch.equal(of(models, name), exact.to(dtype)), name
    assert not same(weights_of(models), before)
    stack.unload("a")
    assert same(weights_of(models), before)


def test_several_are_added_switched_and_weighted() -> None:
    models = models_of("sdxl")
    before = weights_of(models)
    one, other = adapter_for("sdxl", seed=1), adapter_for("sdxl", "loha", seed=2, every=2)
    stack = AdapterStack(models)
    stack.load("dog", one)
    stack.load("crochet", other, 0.5)
    assert stack.weights == {"dog": 1.0, "crochet": 0.5}
    text = next(n for n in other.modules if n.startswith("text_encoder_2."))
    unet = next(n for n in other.modules if n.startswith("unet."))

    def change(name: str) -> Tensor:
        component, path = name.split(".", 1)
        keys = (f"{component}.{path}.weight", f"{component}.{path[11:]}.weight")
        key = next(k for k in keys if k in before)
        return of(models, name) - before[key]

    both = one.modules[unet].delta() + 0.5 * other.modules[unet].delta(of(models, unet))
    assert torch.allclose(change(unet), both.reshape(change(unet).shape), atol=1e-6)
    both = one.modules[text].delta() + 0.5 * other.modules[text].delta()
    assert torch.allclose(change(text), both, atol=1e-6)
    stack.clear()
    stack.load("crochet", other, 0.0)
    assert not change(unet).any()
    stack.load("dog", one)
    stack.unload("dog")
    stack.clear()
    assert same(weights_of(models), before)
    assert stack.weights == {}


def test_nothing_drifts() -> None:
    models = models_of("sd1")
    before = weights_of(models)
    adapters = {str(i): adapter_for("sd1", seed=i, every=4) for i in range(3)}
    stack = AdapterStack(models)
    for name, adapter in adapters.items():
        stack.load(name, adapter)
    after = weights_of(models)
    for i in range(20):
        name = str(i % 3)
        stack.unload(name)
        stack.load(name, adapters[name], 0.1 * i)
    stack.clear()
    for name, adapter in adapters.items():
        stack.load(name, adapter)
    assert same(weights_of(models), after)
    for name in ("1", "0", "2"):
        stack.unload(name)
    assert same(weights_of(models), before)


def test_biases() -> None:
    models = models_of("sd1")
    before = weights_of(models)
    name, norm = "unet.conv_out", "unet.conv_norm_out"
    adapter = Adapter(
        {
            name: DiffWeights(None, torch.ones(4)),
            norm: DiffWeights(torch.ones(32), torch.ones(32), norm=True),
        }
    )
    stack = AdapterStack(models)
    stack.load("a", adapter, 2.0)
    after = weights_of(models)
    assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"] + 2)
    assert torch.equal(after[f"{norm}.weight"], before[f"{norm}.weight"] + 2)
    stack.clear()
    assert same(weights_of(models), before)


def test_a_refused_adapter_leaves_the_model_as_it_was() -> None:
    models = models_of("sd1")
    stack = AdapterStack(models)
    stack.load("good", adapter_for("sd1", every=3))
    before = weights_of(models)
    strange = adapter_for("sdxl", every=2)
    with pytest.raises(UserError, match="does not have"):
        stack.load("strange", strange)
    shapes = adapter_for("sd1", every=2)
    last = list(shapes.modules)[-1]
    shapes.modules[last] = DiffWeights(torch.ones(3, 3))
    with pytest.raises(UserError, match=r"\[3, 3\]"):
        stack.load("wrong", shapes)
    assert same(weights_of(models), before)
    assert list(stack.weights) == ["good"]
    with pytest.raises(UserError, match="already"):
        stack.load("good", adapter_for("sd1"))
    with pytest.raises(UserError, match="Loaded: good"):
        stack.unload("bad")


def test_integer_weights_are_refused() -> None:
    model = nn.Module()
    model.add_module("conv_in", nn.Module())
    model.conv_in.weight = nn.Parameter(  # type: ignore[union-attr]
        torch.zeros(4, 2, dtype=torch.int8), requires_grad=False
    )
    adapter = Adapter({"unet.conv_in": DiffWeights(torch.ones(4, 2))})
    with pytest.raises(UserError, match="quantised"):
        AdapterStack({"unet": model}).load("a", adapter)
