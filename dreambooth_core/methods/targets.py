"""Which layers of a model an adapter changes."""

from __future__ import annotations

import math
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

LONGEST_NAME = 60
"""Characters of a layer's name, about."""

MOST_WAYS = 1_000_000
"""In which an expression may be laid upon one name, at most: real ones have some hundred."""

_NAMES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*")


def pattern_of(wanted: str, presets: Mapping[str, str]) -> str:
    """The pattern to search names of layers with.

    Args:
        wanted: a preset's name; how names end, separated by commas, as in peft's list of target
            modules; or a regular expression for whole names, as peft's text is one.

    Raises:
        UserError: it is not a regular expression, or one that might take for ever.
    """
    if wanted in presets:
        return presets[wanted]
    if _NAMES.fullmatch(wanted.strip()):
        ends = "|".join(re.escape(name.strip()) for name in wanted.split(","))
        return rf"(^|\.)({ends})$"
    try:
        re.compile(wanted)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"{_shown(wanted)} is not a regular expression ({error})",
            where="method.target_modules",
            do=f"Correct it, or choose from {', '.join(presets)}.",
        ) from error
    if _ways(wanted) > MOST_WAYS:
        raise UserError(
            f"the expression {_shown(wanted)} is too complicated: it might take for ever",
            where="method.target_modules",
            do="Use fewer repetitions (* + {) and choices, and no repetition behind a bracket; or "
            "write several ends of names, with commas.",
        )
    return rf"^(?:{wanted})$"


_TOKEN = re.compile(r"\\d[*+]|\[0-9\][*+]|\\.|\[\^?\]?[^\]]*\]|\(\?|[*+}]\?|[()|*+{?]|.", re.DOTALL)
"""Of an expression; digits that are repeated are one, since names hold few."""


def _ways(expression: str) -> float:
    """In how many ways a search might lay an expression upon a name: what it tries in the worst
    case. n repetitions share a name among them, choices multiply."""
    repetitions, ways, choices, before = 0, 1.0, [1], ""
    for token in _TOKEN.findall(expression):
        if token[0] in "*+{":
            if before == ")":
                return math.inf
            repetitions += 1
        elif token == "?":
            ways *= 2
        elif token == "|":
            choices[-1] += 1
        elif token[0] == "(":
            choices.append(1)
        elif token == ")":
            ways *= choices.pop() if len(choices) > 1 else 1
        before = before if token.isspace() else token
        if ways > MOST_WAYS:
            return math.inf
    return ways * choices[0] * math.comb(LONGEST_NAME + repetitions, repetitions)


def _shown(wanted: str) -> str:
    return repr(wanted if len(wanted) <= 200 else f"{wanted[:200]}…")


def target_layers(model: nn.Module, wanted: str, presets: Mapping[str, str]) -> list[str]:
    """Names of the linear and convolution layers of ``model`` that are wanted, in the model's own
    order.

    Raises:
        UserError: there is none, or ``wanted`` is not a regular expression.
    """
    pattern = re.compile(pattern_of(wanted, presets))
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and pattern.search(name)
    ]
    if not found:
        raise UserError(
            f"no layer that can be adapted is named so: {_shown(wanted)}",
            where="method.target_modules",
            do=advice(wanted, presets),
        )
    return found
