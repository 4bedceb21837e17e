"""Which layers of a model an adapter changes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import UserError

TEXT_TARGETS = {
    "query_value": r"\.self_attn\.(q_proj|v_proj)$",
    "attention": r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$",
    "transformer": r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])$",
}
TEXT_TARGETS["all"] = TEXT_TARGETS["transformer"]
"""Of a CLIP text encoder, by the choices of ``method.target_modules``."""

_NAMES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*")


def pattern_of(wanted: str, presets: Mapping[str, str]) -> str:
    """The pattern to search names of layers with.

    Args:
        wanted: a preset's name; how names end, separated by commas, as in peft's list of target
            modules; or a regular expression for whole names, as peft's text is one.

    Raises:
        UserError: it is no regular expression.
    """
    if wanted in presets:
        return presets[wanted]
    if _NAMES.fullmatch(wanted.strip()):
        ends = "|".join(re.escape(name.strip()) for name in wanted.split(","))
        return rf"(^|\.)({ends})$"
    try:
        re.compile(wanted)
    except re.error as error:
        raise UserError(
            f"{wanted!r} is no regular expression ({error})",
            where="method.target_modules",
            do=f"Correct it, or choose from {', '.join(presets)}.",
        ) from error
    return rf"^(?:{wanted})$"


def target_layers(model: nn.Module, wanted: str, presets: Mapping[str, str]) -> list[str]:
    """Names of the linear and convolution layers of ``model`` that are wanted, in the model's own
    order.

    Raises:
        UserError: there is none, or ``wanted`` is no regular expression.
    """
    pattern = re.compile(pattern_of(wanted, presets))
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and pattern.search(name)
    ]
    if not found:
        raise UserError(
            f"no layer that can be adapted is named so: {wanted!r}",
            where="method.target_modules",
            do=advice(wanted, presets),
        )
    return found


def is_wide(layer: nn.Module) -> bool:
    """Whether it is a convolution that looks at more than one place."""
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
