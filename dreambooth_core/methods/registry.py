"""From a method's name to the class that trains it."""

from __future__ import annotations

from dreambooth_core.families.base import Components
from dreambooth_core.methods.adapters import AdapterMethod
from dreambooth_core.methods.base import Method
from dreambooth_core.methods.full import FullMethod
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.tokens import PivotalTuning, TextualInversion

METHODS: dict[str, type[Method]] = {
    "full": FullMethod,
    "textual_inversion": TextualInversion,
    "pivotal": PivotalTuning,
}
"""Those with a class of their own; the rest are adapters."""


def method_for(options: MethodOptions, parts: Components) -> Method:
    """The method that ``options.kind`` names, for a loaded base."""
    return METHODS.get(options.kind, AdapterMethod)(options, parts)
