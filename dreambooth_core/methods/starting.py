"""A run that begins from an adapter: what a file holds, for the layers that are to be trained.

Each method takes the file's change of a weight into its own matrices where they can hold it to
1e-5, whatever kind of adapter the file is; where they cannot, the run is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.names import label_of
from dreambooth_core.formats.adapters.lowrank import Keep, Reduced, reduce_matrix, reduce_product
from dreambooth_core.formats.adapters.model import Weights, component_of
from dreambooth_core.formats.adapters.naming import unfused
from dreambooth_core.formats.adapters.peft_state import names_in
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.weights import require_fit

WHERE = "method.init_from"
EXACT = 3e-6
"""The largest relative error of a change that counts as held: fp32's rounding, and room for it."""


def read_start(path: str, models: Mapping[str, nn.Module]) -> dict[str, dict[str, Weights]]:
    """An adapter, of any naming, by the models that are trained and the names of their modules.

    Raises:
        UserError: it is no adapter, or it changes what these models do not have.
    """
    adapter = unfused(read_adapter(Path(path)))
    names = {component: names_in(component, model) for component, model in models.items()}
    found: dict[str, dict[str, Weights]] = {component: {} for component in models}
    made_for = label_of(adapter.family)
    the_adapter = f"the adapter{f' was made for {made_for} and' * bool(made_for)} changes"
    for full, weights in adapter.modules.items():
        component = component_of(full)
        if component not in names and component.startswith("text_encoder"):
            raise UserError(
                f"the adapter changes the {component}, which this run does not train",
                do="Set method.train_text_encoder to true.",
            )
        name = names.get(component, {}).get(full.split(".", 1)[1])
        if name is None:
            raise UserError(
                f"{the_adapter} {full}, which this base does not have",
                do="Use an adapter that was made for this kind of base.",
            )
        found[component][name] = weights
    return found


def require_layers(component: str, model: nn.Module, start: Mapping[str, Weights]) -> None:
    """Raises ``UserError`` for a change of what no adapter of peft's can be put on."""
    for name, weights in start.items():
        if not isinstance(model.get_submodule(name), nn.Linear | nn.Conv2d):
            what = f"{component}.{name}, which is not a linear layer or a convolution"
        elif weights.bias_delta() is not None:
            what = f"the bias of {component}.{name}, which is not trained"
        else:
            continue
        raise UserError(
            f"the adapter changes {what}",
            do="Use another adapter, or bake this one into the base first.",
        )


def low_rank(weights: Weights, rank: int, base: Tensor) -> tuple[Tensor, Tensor] | None:
    """The change of ``base`` as ``up [out, r] · down [r, in · kernel]``, fp32, with r <= ``rank``.

    The factors of a LoRA stay what they are. None where the base has no data and the change
    depends on it: whether it can be held is then found out later.

    Raises:
        UserError: the change is of another size, or of a higher rank.
    """
    factors = weights.factors()
    if factors is not None:
        up, down, _ = factors
        require_fit((up.shape[0], down.shape[1]), base)
        if down.shape[0] <= rank:
            return up, down
        return _held(reduce_product(up, down, Keep(rank)), rank)
    if base.is_meta:
        return None
    return cut(weights.delta(base.detach().cpu()).flatten(1), rank)


def cut(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A matrix as a product of a rank. Raises ``UserError`` if it is of a higher one."""
    return _held(reduce_matrix(matrix, Keep(rank)), rank)


def _held(reduced: Reduced, rank: int) -> tuple[Tensor, Tensor]:
    if reduced.error > EXACT:
        raise UserError(
            f"the adapter's change has a higher rank than {rank}, which keeps all but "
            f"{reduced.error:.1%} of it",
            do="Raise method.rank, choose the adapter's own kind as method.kind, or cut it with "
            "`dreambooth resize` first.",
        )
    return reduced.up, reduced.down


def kronecker(change: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """The factors ``[a, b]`` and ``[c, d]`` whose Kronecker product a change ``[a · c, b · d]`` is.

    What such a product is becomes a matrix of rank 1 once it is sorted by its two factors
    (Van Loan, Pitsianis 1993).

    Raises:
        UserError: it is no such product.
    """
    c, d = change.shape[0] // a, change.shape[1] // b
    sorted_by = change.reshape(a, c, b, d).permute(0, 2, 1, 3).reshape(a * b, c * d)
    found = reduce_matrix(sorted_by, Keep(1))
    if found.error > EXACT:
        raise UserError(
            f"the adapter's change is no Kronecker product of {a} x {b} and {c} x {d}",
            do="Choose another method.kind, such as the adapter's own.",
        )
    return found.up.reshape(a, b), found.down.reshape(c, d)


@torch.no_grad()
def fill(up: nn.Parameter, down: nn.Parameter, factors: tuple[Tensor, Tensor]) -> None:
    """Makes ``up [out, R, …]`` and ``down [R, in, …]`` give the product of ``factors``, of a rank
    of at most R. What is left of ``down`` stays as it was, beside zeros in ``up``."""
    left, right = factors
    rank = left.shape[1]
    wide, long = up.data.view(up.shape[0], -1), down.data.view(down.shape[0], -1)
    wide.zero_()
    wide[:, :rank] = left.to(wide)
    long[:rank] = right.to(long)
