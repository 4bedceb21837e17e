"""LoRA and its relatives: small trainable matrices beside the base's frozen layers.

LoRA (Hu et al. 2021), DoRA (Liu et al. 2024), LoHa (Hyeon-Woo et al. 2022), LoKr (Yeh et al.
2024) and OFT (Qiu et al. 2023), all through peft, which swaps the target layers in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, Weights
from dreambooth_core.formats.adapters.names import layers_of
from dreambooth_core.formats.adapters.peft_state import from_peft
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.targets import is_wide, target_layers
from dreambooth_core.randomness import seed_of

ADAPTER = "default"
"""The name under which peft keeps the adapter that is trained."""


class AdapterMethod(Method):
    """Trains an adapter of any kind that peft can inject."""

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        self._trainables = [
            Trainable(component, self._inject(component, model, seed, dtype))
            for component, model in self.adapted_models.items()
        ]
        return self._trainables

    @property
    def adapted_models(self) -> dict[str, nn.Module]:
        """The models that get an adapter."""
        return self.trained_models

    def _inject(
        self, component: str, model: nn.Module, seed: int, dtype: torch.dtype
    ) -> dict[str, nn.Parameter]:
        from peft import inject_adapter_in_model

        layers = target_layers(model, component, self.options.targets)
        if self.options.kind == "oft":
            # Turning the overlapping patches of a k x k convolution is not a weight change.
            layers = [name for name in layers if not is_wide(model.get_submodule(name))]
        if not layers:
            raise UserError(
                f"the {component} has no layers of the kind {self.options.targets!r}",
                where="method.targets",
                do="Choose other layers, or another base.",
            )
        config = peft_config(self.options, component, layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("adapter", seed, component))
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = parameter.data.to(dtype)
        return trained

    def adapter(self) -> Adapter:
        modules = {}
        for component, model in self.adapted_models.items():
            found = from_peft(component, model, ADAPTER)
            modules.update(in_full(found, model) if self.options.kind == "oft" else found)
        return Adapter(
            modules=modules,
            metadata={},
            family=self.parts.family.name,
            layers_per_block=layers_of(self.parts.unet.config),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._named()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._named():
                parameter.copy_(tensors[name])

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self._trainables:
            for name, parameter in group.parameters.items():
                yield f"{group.component}.{name}", parameter


def in_full(found: dict[str, Weights], model: nn.Module) -> dict[str, Weights]:
    """The whole change of each weight, from OFT's rotations of a model's inputs.

    The hosts' OFT turns outputs, and no rotation of outputs does what one of inputs does.
    """
    layers: list[Any] = [m for m in model.modules() if ADAPTER in getattr(m, "oft_R", ())]
    changes: dict[str, Weights] = {}
    for (name, weights), layer in zip(found.items(), layers, strict=True):
        weight = layer.get_base_layer().weight
        changes[name] = DiffWeights(weights.delta(weight.detach().cpu()))
    return changes


def peft_config(options: MethodOptions, component: str, layers: list[str]) -> Any:
    """peft's configuration of the chosen kind for one model."""
    import peft

    text = component != "unet"
    rank = (options.text_rank if text else None) or options.rank
    alpha = (options.text_alpha if text else None) or options.alpha
    dropout = options.dropout
    if text and options.text_dropout is not None:
        dropout = options.text_dropout
    if options.kind in ("lora", "dora", "pivotal"):
        # The adapters' scale is alpha / rank; peft types alpha as int but takes any number.
        return peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=layers,
            use_dora=options.kind == "dora",
        )
    if options.kind == "loha":
        return peft.LoHaConfig(
            r=rank,
            alpha=alpha,
            rank_dropout=dropout,
            target_modules=layers,
        )
    if options.kind == "lokr":
        return peft.LoKrConfig(
            r=rank,
            alpha=alpha,
            rank_dropout=dropout,
            target_modules=layers,
        )
    if dropout:
        # peft makes a dropout layer for OFT and never calls it.
        raise UserError(
            "oft has no dropout",
            where="method.text_dropout" if text and options.text_dropout else "method.dropout",
            do="Set it to 0, or choose another method.",
        )
    # The Neumann series only approximates the rotation; hosts compute the exact one.
    return peft.OFTConfig(
        r=0,
        oft_block_size=rank,
        target_modules=layers,
        use_cayley_neumann=False,
    )
