"""peft's configuration of an adapter: what ``adapter_config.json`` and diffusers' metadata say."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dreambooth_core.disk.reading import parse_json
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.adapters.model import (
    LohaWeights,
    LokrWeights,
    LoraWeights,
    OftWeights,
    Weights,
)

METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers (0.34 and newer) keeps the configuration in a safetensors header."""

T = TypeVar("T", int, float)
_METHODS = ("LORA", "LOHA", "LOKR", "OFT")


_TERMS = "num_cayley_neumann_terms"
MAX_PATTERNS = 2_000
MAX_COUNT = 1_000_000
Patterns = Sequence[tuple[re.Pattern[str], T]]
"""Values by an expression that the end of a module's path matches, the first that does counts."""


@dataclass(frozen=True)
class PeftSettings:
    """The part of a peft configuration that ΔW depends on."""

    rank: int = 8
    alpha: float | None = None
    rank_pattern: Patterns[int] = ()
    alpha_pattern: Patterns[float] = ()
    rank_stabilised: bool = False
    neumann_terms: int = 5
    """OFT: terms of the series that stands for the inverse; 0 for the exact one."""
    base: str = ""

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> PeftSettings:
        """From the JSON of ``adapter_config.json``, or of diffusers' metadata for one component.

        Raises:
            Unsupported: a method other than LoRA, LoHa, LoKr, OFT, or a transposed layer.
            UserError: a value that is none of its kind.
        """
        method = (_text("peft_type", config.get("peft_type")) or "LORA").rsplit(".", 1)[-1].upper()
        if method not in _METHODS:
            raise Unsupported(f"peft's method {method} is not handled")
        if config.get("fan_in_fan_out"):
            raise Unsupported("an adapter of transposed layers (fan_in_fan_out) is not handled")
        alpha = config.get("lora_alpha", config.get("alpha"))
        neumann = config.get("use_cayley_neumann", True)
        return cls(
            rank=_count("r", config.get("r") or 8),
            alpha=None if alpha is None else _number("lora_alpha", alpha),
            rank_pattern=_patterned("rank_pattern", config.get("rank_pattern"), _count),
            alpha_pattern=_patterned("alpha_pattern", config.get("alpha_pattern"), _number),
            rank_stabilised=_switch("use_rslora", config.get("use_rslora")),
            neumann_terms=_count(_TERMS, config.get(_TERMS) or 5) if neumann else 0,
            base=_text("base_model_name_or_path", config.get("base_model_name_or_path")),
        )

    def effective_alpha(self, name: str, rank: int) -> float:
        """alpha so that alpha / rank is the scale; the square root of rsLoRA is folded in."""
        alpha = _lookup(self.alpha_pattern, name)
        value = float(alpha if alpha is not None else self.alpha or rank)
        return value * math.sqrt(rank) if self.rank_stabilised else value

    def scale(self, name: str) -> float:
        """alpha / rank by the configuration alone, for modules that have no thin matrix."""
        rank = int(_lookup(self.rank_pattern, name) or self.rank)
        return self.effective_alpha(name, rank) / rank


def from_metadata(metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """diffusers' configuration by component; empty where there is none.

    Raises:
        UserError: it is there and damaged: without it alpha would be guessed.
    """
    try:
        packed = parse_json(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"the metadata {METADATA_KEY!r} is damaged: {error}") from error
    parts: dict[str, dict[str, Any]] = {}
    for key, value in packed.items():
        component, _, option = key.partition(".")
        parts.setdefault(component, {})[option] = value
    return {component: PeftSettings.parse(config) for component, config in parts.items()}


def to_config(named: Mapping[str, Weights], base: str = "") -> dict[str, Any]:
    """The configuration that makes peft build these layers; ``named`` by path in the component.

    Names are given without ``text_model.``: peft matches ends of names, so the configuration
    fits a CLIP of transformers older and newer than 5.6, which flattened CLIPTextModel.

    Raises:
        Unsupported: methods are mixed, or peft has no such method.
    """
    kinds = {type(weights) for weights in named.values()}
    if len(kinds) != 1:
        raise Unsupported(
            "peft holds one method per model, and this adapter mixes several",
            do="Write the kohya layout, or merge the adapter into plain LoRA first.",
        )
    kind = kinds.pop()
    named = {path.removeprefix("text_model."): weights for path, weights in named.items()}
    config: dict[str, Any] = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(named),
        "modules_to_save": None,
    }
    ranks = {name: w.rank for name, w in named.items()}
    alphas = {name: w.alpha for name, w in named.items()}
    if kind is LoraWeights:
        return {**config, **_lora_config(named), **_patterns(ranks, alphas, "lora_alpha")}
    if kind is LohaWeights:
        tucker = any(getattr(w, "t1", None) is not None for w in named.values())
        own = {"peft_type": "LOHA", "use_effective_conv2d": tucker}
        return {**config, **own, **_patterns(ranks, alphas, "alpha")}
    if kind is LokrWeights:
        return {**config, **_lokr_config(named)}
    if kind is OftWeights:
        return {**config, **_oft_config(named)}
    raise Unsupported("peft has no layout for weights that are stored in full")


def _lora_config(named: Mapping[str, Weights]) -> dict[str, Any]:
    if any(getattr(w, "mid", None) is not None for w in named.values()):
        raise Unsupported("peft has no Tucker form of LoRA", do="Write the kohya layout.")
    if any(w.bias is not None for w in named.values()):
        raise Unsupported("peft's LoRA has no change of biases", do="Write the kohya layout.")
    dora = {w.dora_scale is not None for w in named.values()}
    if len(dora) > 1:
        raise Unsupported("peft cannot mix LoRA and DoRA in one model", do="Write kohya.")
    return {
        "peft_type": "LORA",
        "use_dora": dora.pop(),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
    }


def _lokr_config(named: Mapping[str, Weights]) -> dict[str, Any]:
    lokrs = {name: w for name, w in named.items() if isinstance(w, LokrWeights)}
    largest = max(max(*w.first().shape, *w.second().shape[:2]) for w in lokrs.values())
    ranks = {name: w.rank or largest for name, w in lokrs.items()}
    alphas = {name: w.alpha if w.rank else float(largest) for name, w in lokrs.items()}
    factors = {int(min(w.first().shape)) for w in lokrs.values()}
    return {
        "peft_type": "LOKR",
        "decompose_both": any(w.w1 is None for w in lokrs.values()),
        "decompose_factor": factors.pop() if len(factors) == 1 else -1,
        "use_effective_conv2d": any(w.t2 is not None for w in lokrs.values()),
        **_patterns(ranks, alphas, "alpha"),
    }


def _oft_config(named: Mapping[str, Weights]) -> dict[str, Any]:
    ofts = [w for w in named.values() if isinstance(w, OftWeights)]
    if any(w.side != "in" or w.rescale is not None or w.alpha for w in ofts):
        raise Unsupported(
            "this OFT turns outputs (kohya, LyCORIS); peft's turns inputs",
            do="Write the kohya layout.",
        )
    forms = {(w.terms, w.rank) for w in ofts}
    if len(forms) > 1:
        raise Unsupported("peft holds one OFT block size per model", do="Write one at a time.")
    terms, size = forms.pop()
    return {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": size,
        "use_cayley_neumann": bool(terms),
        _TERMS: terms or 5,
        "block_share": all(w.blocks.shape[0] == 1 for w in ofts),
    }


def _patterns(
    ranks: Mapping[str, int], alphas: Mapping[str, float], alpha_key: str
) -> dict[str, Any]:
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "r": int(rank),
        alpha_key: _whole(alpha),
        "rank_pattern": {re.escape(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(n): _whole(a) for n, a in alphas.items() if a != alpha},
    }


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _lookup(patterns: Patterns[T], name: str) -> T | None:
    """The value whose expression matches the end of ``name``, as peft matches them."""
    path = name.split(".", 1)[1]
    spellings = {path, path.removeprefix("text_model.")}
    return next((v for form, v in patterns if any(map(form.match, spellings))), None)


def _patterned(name: str, value: Any, kind: Callable[[str, Any], T]) -> Patterns[T]:
    """A table of values by expression. Raises ``UserError``.

    Expressions that could take for ever are refused: a repeated group, more than two repetitions
    or choices in one, or many in all. peft writes plain names, with their dots escaped.
    """
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        raise UserError(f"{name} is not a table of numbers by module")
    made = []
    total = 0
    for key, number in value.items():
        repeats = len(re.findall(r"(?<!\\)[*+?{|]", key))
        total += repeats
        if len(key) > 500 or repeats > 2 or total > 10 or re.search(r"\)\s*[*+?{]", key):
            raise UserError(f"{name} has an expression that is too complicated: {key[:80]!r}")
        try:
            form = re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError):
            form = re.compile(rf".*{re.escape(key)}$")
        made.append((form, kind(f"{name} of {key[:80]!r}", number)))
    return tuple(made)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e30:
        raise UserError(f"{name} is {_shown(value)}, not a number")
    return float(value)


def _count(name: str, value: Any) -> int:
    number = _number(name, value)
    if number < 1 or not number.is_integer() or number > MAX_COUNT:
        raise UserError(f"{name} is {_shown(value)}, not a whole number from 1 to {MAX_COUNT:,}")
    return int(number)


def _switch(name: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise UserError(f"{name} is {_shown(value)}, neither true nor false")
    return bool(value)


def _text(name: str, value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}, not a text")
    return value or ""


def _shown(value: Any) -> str:
    plain = isinstance(value, (str, int, float))
    return repr(value)[:80] if plain else f"a {type(value).__name__}"
