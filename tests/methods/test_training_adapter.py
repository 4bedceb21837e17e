"""A training adapter is on the base while another adapter is trained, and in no result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.adapters import adapter_for
from helpers.runs import config_for, losses, train
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.quantized import quantize
from dreambooth_core.trainer.proof import answer

CAPTION = "a photo of a ball"


@pytest.fixture
def parts(base: Path) -> Components:
    return load_base(BaseOptions(model=str(base)))


def helper(parts: Components, kind: str = "lora") -> Adapter:
    """A random adapter on linear layers of the denoiser."""
    found = {
        f"unet.{name}": module.weight.detach()
        for name, module in parts.denoiser.named_modules()
        if isinstance(module, nn.Linear) and "attn" in name
    }
    return adapter_for("sd1", kind, rank=4, every=3, base=found)


@pytest.fixture
def file(parts: Components, tmp_path: Path) -> Path:
    return write_adapter(helper(parts), tmp_path / "helper.safetensors", "kohya")


def with_it(parts: Components, file: Path) -> Tensor:
    stack = AdapterStack(parts.models)
    stack.load("it", read_adapter(file))
    try:
        return answer(parts, CAPTION)
    finally:
        stack.clear()


def test_it_is_on_the_base_in_training_alone(parts: Components, file: Path) -> None:
    plain, wanted = answer(parts, CAPTION), with_it(parts, file)
    method = method_for(MethodOptions(training_adapter=str(file)), parts)
    method.attach(0)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    torch.testing.assert_close(answer(parts, CAPTION), wanted, atol=1e-5, rtol=1e-5)
    with method.as_result():
        assert torch.equal(answer(parts, CAPTION), plain)
    torch.testing.assert_close(answer(parts, CAPTION), wanted, atol=1e-5, rtol=1e-5)


def test_beside_quantised_layers(parts: Components, file: Path) -> None:
    quantize(parts.denoiser, "int8")
    plain = answer(parts, CAPTION)
    method = method_for(MethodOptions(training_adapter=str(file)), parts)
    method.attach(0)
    assert not torch.allclose(answer(parts, CAPTION), plain, atol=1e-3)
    with method.as_result():
        assert torch.equal(answer(parts, CAPTION), plain)


def test_it_is_there_while_training_and_in_no_result(
    base: Path, pictures: Path, file: Path, tmp_path: Path
) -> None:
    """The proof, which asks the base with the result alone, would fail if it stayed on."""
    plain = train(config_for(base, pictures, tmp_path / "plain"))
    config = config_for(base, pictures, tmp_path / "helped", method__training_adapter=file)
    helped = train(config, proven=True)
    assert losses(helped) != losses(plain)
    results = [read_adapter(next(run.path.glob("*.safetensors"))) for run in (plain, helped)]
    assert results[0].modules.keys() == results[1].modules.keys()


def test_what_is_no_plain_lora_is_refused(parts: Components, tmp_path: Path) -> None:
    for kind in ("dora", "loha"):
        path = write_adapter(helper(parts, kind), tmp_path / f"{kind}.safetensors", "kohya")
        with pytest.raises(UserError, match=f"is changed by {kind}") as refused:
            method_for(MethodOptions(training_adapter=str(path)), parts).attach(0)
        assert refused.value.where == "method.training_adapter"


def test_one_for_another_base_is_refused(base_of: Callable[[str], Path], file: Path) -> None:
    other = load_base(BaseOptions(model=str(base_of("sdxl"))))
    with pytest.raises(UserError, match=r"does not have|is not") as refused:
        method_for(MethodOptions(training_adapter=str(file)), other).attach(0)
    assert refused.value.where == "method.training_adapter"
