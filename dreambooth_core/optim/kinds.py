"""What is peculiar to each optimizer. Standard library only.

The builders are in ``optimizers.py``, the memory formulas in ``state_size.py``, and what cannot
be combined in ``combinations.py``; all of them read this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.errors import UserError


@dataclass(frozen=True)
class Kind:
    """One optimizer."""

    name: str
    package: str
    """The pip package that it comes from; ``torch`` and ``transformers`` are always there."""
    per_parameter: bool = True
    """Whether weights may take their steps one at a time: nothing is shared among them."""
    finds_rate: bool = False
    """Whether the learning rate is a factor of a rate that the optimizer finds itself."""
    averages: bool = False
    """Whether the optimizer averages weights itself, in place of a schedule."""

    @property
    def default_rate(self) -> float | None:
        """The usual learning rate, where it does not depend on what is trained."""
        return 1.0 if self.finds_rate else None


_BITSANDBYTES = (
    "adamw8bit",
    "paged_adamw",
    "paged_adamw8bit",
    "lion",
    "lion8bit",
    "paged_lion8bit",
    "ademamix8bit",
)
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("adamw", "torch"),
        Kind("adam", "torch"),
        Kind("sgd", "torch"),
        Kind("adafactor", "transformers"),
        *(Kind(name, "bitsandbytes") for name in _BITSANDBYTES),
        Kind("prodigy", "prodigyopt", per_parameter=False, finds_rate=True),
        Kind("dadapt_adam", "dadaptation", per_parameter=False, finds_rate=True),
        Kind("dadapt_lion", "dadaptation", per_parameter=False, finds_rate=True),
        Kind("adamw_schedulefree", "schedulefree", per_parameter=False, averages=True),
        Kind("radam_schedulefree", "schedulefree", per_parameter=False, averages=True),
        Kind("sgd_schedulefree", "schedulefree", per_parameter=False, averages=True),
    )
}


def kind_of(name: str) -> Kind:
    """The kind of a name. Raises ``UserError`` for an unknown one."""
    try:
        return KINDS[name]
    except KeyError:
        raise UserError(
            f"optimizer {name!r} is not known",
            where="optim.optimizer",
            do=f"Known are {', '.join(KINDS)}.",
        ) from None
