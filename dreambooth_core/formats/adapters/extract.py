"""Gets an adapter out of two models: the best low-rank form of what training changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.lowrank import Keep, as_lora, reduce_matrix, root, squares
from dreambooth_core.formats.adapters.model import (
    COMPONENTS,
    Adapter,
    DiffWeights,
    Weights,
    block_of,
)

States = Mapping[str, Mapping[str, Tensor]]
"""State dicts in diffusers' names by component; text encoders with ``text_model.``."""


@dataclass(frozen=True)
class Extraction:
    """What to extract."""

    keep: Keep = field(default_factory=lambda: Keep(rank=32))
    blocks: Mapping[str, Keep] = field(default_factory=dict)
    """Other ranks or energies by the beginning of a block's name (``unet.down_blocks.1``)."""
    rest: bool = False
    """Also norms and biases, stored in full."""
    dtype: torch.dtype = torch.float32

    def keep_of(self, module: str) -> Keep:
        """What to keep of one module: the longest matching beginning wins."""
        fitting = [b for b in self.blocks if f"{module}.".startswith(f"{b}.")]
        return self.blocks[max(fitting, key=len)] if fitting else self.keep


@dataclass(frozen=True)
class Extracted:
    """What an extraction found."""

    ranks: dict[str, int]
    """Rank per module."""
    error: float
    """‖ΔW - its low-rank form‖ / ‖ΔW‖ over the matrices that were extracted."""
    block_errors: dict[str, float]
    """The same per block."""
    left_out: float
    """The share of the whole change (norm) in tensors that were left out: norms, biases,
    embeddings."""
    unchanged: int
    """Matrices that are equal in both models."""


def extract(
    base: States, tuned: States, options: Extraction | None = None, family: str | None = None
) -> tuple[Adapter, Extracted]:
    """The adapter that turns ``base`` into ``tuned``.

    Raises:
        UserError: the models differ in shape, do not differ at all, or hold NaN or infinity.
    """
    options = options or Extraction()
    modules: dict[str, Weights] = {}
    blocks: dict[str, list[float]] = {}
    outside, unchanged = 0.0, 0
    for component in COMPONENTS:
        if component not in base or component not in tuned:
            continue
        changes, equal = _changes(component, base[component], tuned[component])
        unchanged += equal
        for name, change in changes.items():
            weight, bias = change.get("weight"), change.get("bias")
            embedding = "embedding" in name.rsplit(".", 1)[-1]
            if weight is not None and weight.ndim > 1 and not embedding:
                reduced = reduce_matrix(weight.flatten(1), options.keep_of(name))
                sums = blocks.setdefault(block_of(name), [0.0, 0.0])
                sums[0] += max(0.0, reduced.lost)
                sums[1] += reduced.total
                made = as_lora(reduced.up, reduced.down, weight.shape)
                if options.rest:
                    made.bias = bias
                elif bias is not None:
                    outside += squares(bias)
                modules[name] = made.to(options.dtype)
            elif options.rest and not embedding:
                norm = weight is not None and weight.ndim == 1
                modules[name] = DiffWeights(weight, bias, norm=norm).to(options.dtype)
            else:
                outside += sum(map(squares, change.values()))
    if not modules and not outside:
        raise UserError(
            "the two models are equal, there is nothing to extract",
            do="Give the base first and the trained model second.",
        )
    if not modules:
        raise UserError("the models differ only in norms, biases or embeddings", do="Give --rest.")
    lost, total = (sum(pair[axis] for pair in blocks.values()) for axis in (0, 1))
    report = Extracted(
        {name: w.rank for name, w in modules.items() if w.rank},
        root(lost, total),
        {block: root(*pair) for block, pair in blocks.items()},
        root(outside, total + outside),
        unchanged,
    )
    return Adapter(modules, {}, family), report


Change = dict[str, Tensor]
"""``weight`` and ``bias`` changes in fp32, those that are not zero."""


def _changes(
    component: str, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]
) -> tuple[dict[str, Change], int]:
    """What changed by module, and how many matrices are equal."""
    missing = [key for key in base if key not in tuned and not key.endswith("position_ids")]
    if missing:
        raise UserError(
            f"the trained model has no {component}.{missing[0]}, and {len(missing)} tensors in all "
            "are missing",
            do="Both models must be of one kind and size.",
        )
    found: dict[str, Change] = {}
    equal = 0
    for key, before in base.items():
        path, _, kind = key.rpartition(".")
        if kind not in ("weight", "bias") or not before.is_floating_point():
            continue
        after = tuned[key]
        if after.shape != before.shape:
            raise UserError(
                f"{component}.{key} is {list(before.shape)} in the base and {list(after.shape)} "
                "in the trained model",
                do="Both models must be of one kind and size.",
            )
        change = after.float() - before.float()
        if not bool(change.isfinite().all()):
            which = "base" if not bool(before.isfinite().all()) else "trained model"
            raise UserError(
                f"{component}.{key} holds NaN or infinity in the {which}",
                do="This model is damaged: train or download it again.",
            )
        if bool(change.any()):
            found.setdefault(f"{component}.{path}", {})[kind] = change
        elif kind == "weight" and before.ndim > 1:
            equal += 1
    return found, equal
