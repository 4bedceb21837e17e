"""Which layers of a model an adapter changes."""

from __future__ import annotations

import re

from torch import nn

TEXT_TARGETS = {
    "query_value": r"\.self_attn\.(q_proj|v_proj)$",
    "attention": r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$",
    "transformer": r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])$",
}
TEXT_TARGETS["all"] = TEXT_TARGETS["transformer"]
"""Of a CLIP text encoder, by the choices of ``method.target_modules``."""


def target_layers(model: nn.Module, pattern: str) -> list[str]:
    """Names of the linear and convolution layers of ``model`` that ``pattern`` is found in, in
    the model's own order."""
    found = re.compile(pattern)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and found.search(name)
    ]


def is_wide(layer: nn.Module) -> bool:
    """Whether it is a convolution that looks at more than one place."""
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
