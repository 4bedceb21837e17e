"""Which layers of a model an adapter changes.

The layers are those that the hosts know from kohya's sd-scripts: the transformer blocks'
linear layers, and for ``all`` the residual blocks, down- and upsamplers. The first and last
convolution and the time embedding stay as they are, since no host maps them.
"""

from __future__ import annotations

import re

from torch import nn

_UNET = {
    "query_value": r"\.attn[12]\.(to_q|to_v)$",
    "attention": r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
    "transformer": r"\.attentions\.\d+\.(transformer_blocks\.|proj_in$|proj_out$)",
    "all": r"\.(attentions|resnets|downsamplers|upsamplers)\.",
}
_TEXT = {
    "query_value": r"\.self_attn\.(q_proj|v_proj)$",
    "attention": r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$",
    "transformer": r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])$",
}
_TEXT["all"] = _TEXT["transformer"]


def target_layers(model: nn.Module, component: str, targets: str) -> list[str]:
    """Names of the linear and convolution layers of ``model`` to adapt, in its own order.

    Args:
        model: a UNet or a CLIP text encoder.
        component: ``unet`` or the name of a text encoder.
        targets: one of :data:`dreambooth_core.methods.options.TARGETS`.
    """
    pattern = re.compile((_UNET if component == "unet" else _TEXT)[targets])
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and pattern.search(name)
    ]


def is_wide(layer: nn.Module) -> bool:
    """Whether it is a convolution that looks at more than one place."""
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
