"""A LoRA layer's forward pass, without what peft finds out anew at each one.

Small models, and GPUs that wait for the processor, spend a good part of a step on Python. peft's
layer can mix adapters, merge them and take variants; in training there is one, and it is plain.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def quicken(model: nn.Module) -> int:
    """Gives the model's plain LoRA layers the short way, to the bit what peft's is; returns how
    many. A layer goes peft's way as soon as it is more than plain: switched off, merged, with
    dropout, a second adapter or a variant such as DoRA."""
    from peft.tuners.lora.layer import Linear

    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.__class__ = _quick_linear()
    return len(layers)


@cache
def _quick_linear() -> type[nn.Module]:
    from peft.tuners.lora.layer import Linear as PeftLinear

    class Linear(PeftLinear):
        """peft's layer, with a short way."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            modules = self._modules
            down, up = modules["lora_A"], modules["lora_B"]
            name = next(iter(down._modules), None)
            plain = (
                name is not None
                and len(down._modules) == 1
                and not (args or kwargs or self._disable_adapters or self.merged_adapters)
                and self._active_adapter in (name, [name])
                and not self.lora_variant
                and type(modules["lora_dropout"]._modules[name]) is nn.Identity
            )
            if not plain:
                return super().forward(x, *args, **kwargs)
            result = modules["base_layer"](x)
            first, second = down._modules[name], up._modules[name]
            x = self._cast_input_dtype(x, first.weight.dtype)
            change = F.linear(F.linear(x, first.weight), second.weight, second.bias)
            if (factor := self.scaling[name]) != 1:
                change = change * factor
            changed = result + change
            return changed if changed.dtype == result.dtype else changed.to(result.dtype)

    return Linear
