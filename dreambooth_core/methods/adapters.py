"""LoRA and its relatives: small trainable matrices beside the base's frozen layers.

LoRA (Hu et al. 2021), DoRA (Liu et al. 2024), LoHa (Hyeon-Woo et al. 2022), LoKr (Yeh et al.
2024) and OFT (Qiu et al. 2023), all through peft, which swaps the target layers in place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError, at
from dreambooth_core.families.names.unet import layers_of
from dreambooth_core.formats.adapters.model import (
    Adapter,
    DiffWeights,
    LohaWeights,
    LoraWeights,
    Weights,
)
from dreambooth_core.formats.adapters.peft_state import from_peft, take_off
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.quick import quicken
from dreambooth_core.methods.starting import (
    WHERE,
    cut,
    fill,
    kronecker,
    low_rank,
    read_start,
    require_layers,
)
from dreambooth_core.methods.targets import TEXT_TARGETS, target_layers
from dreambooth_core.methods.training_adapter import TrainingAdapter
from dreambooth_core.randomness import seed_of

ADAPTER = "default"
"""The name under which peft keeps the adapter that is trained."""


class AdapterMethod(Method):
    """Trains an adapter that peft injects; a subclass says which, by :meth:`peft_config`."""

    @abstractmethod
    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        """peft's configuration for one model of the base, whose layers are named."""

    def layers(self, model: nn.Module, component: str) -> list[str]:
        """The names of the layers to adapt in one model."""
        family, wanted = self.parts.family, self.options.target_modules
        if component == family.denoiser:
            return target_layers(model, wanted, family.targets)
        # Names of its own layers are the denoiser's.
        return target_layers(model, wanted if wanted in TEXT_TARGETS else "attention", TEXT_TARGETS)

    def weights(self, component: str, model: nn.Module) -> dict[str, Weights]:
        """What was learned in one model, by canonical names."""
        return from_peft(component, model, ADAPTER)

    def take_over(self, layer: Any, weights: Weights, strength: float) -> None:
        """Makes a layer that peft has just made change the base as ``weights`` do, ``strength``
        times, to 1e-5.

        Raises:
            UserError: this method's matrices cannot hold that change.
        """
        raise UserError(
            f"{self.options.kind} cannot begin from an adapter",
            do="Leave it empty, or choose lora, dora, loha, lokr or full as method.kind.",
        )

    _training: TrainingAdapter | None = None

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        options, models = self.options, self.adapted_models
        if options.training_adapter:
            denoiser = self.parts.family.denoiser
            self._training = TrainingAdapter(
                options.training_adapter, denoiser, self.parts.denoiser
            )
        start: dict[str, dict[str, Weights]] = {}
        if options.init_from:
            with at(WHERE):
                start = read_start(options.init_from, models)
        self._trainables = [
            Trainable(name, self._inject(name, model, seed, dtype, start.get(name, {})))
            for name, model in models.items()
        ]
        return self._trainables

    def as_result(self) -> AbstractContextManager[None]:
        return self._training.switched_off() if self._training else nullcontext()

    def _sizes(self, component: str) -> dict[str, Any]:
        """Rank, alpha and dropout of one model's adapter."""
        sizes = {name: getattr(self.options, name) for name in ("rank", "alpha", "dropout")}
        if component != self.parts.family.denoiser:
            own = {name: getattr(self.options, f"text_{name}") for name in sizes}
            sizes |= {name: value for name, value in own.items() if value is not None}
        return sizes

    @property
    def adapted_models(self) -> dict[str, nn.Module]:
        """The models that get an adapter."""
        return self.trained_models

    def _inject(
        self,
        component: str,
        model: nn.Module,
        seed: int,
        dtype: torch.dtype,
        start: Mapping[str, Weights],
    ) -> dict[str, nn.Parameter]:
        from peft import inject_adapter_in_model

        with at(WHERE):
            require_layers(component, model, start)
        layers = list(dict.fromkeys([*self.layers(model, component), *start]))
        config = self.peft_config(layers, **self._sizes(component))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("adapter", seed, component))
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        quicken(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = parameter.data.to(dtype)
        for name, weights in start.items():
            with at(WHERE, f"{component}.{name}"):
                self.take_over(model.get_submodule(name), weights, self.options.init_weight)
        return trained

    @contextmanager
    def as_base(self) -> Iterator[None]:
        layers = [layer for model in self.adapted_models.values() for layer in _layers(model)]
        # Not by enable_adapters, which takes the adapter's gradients off as well.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def detach(self) -> bool:
        if self._training is not None or self.embedding() is not None:
            return False
        for model in self.adapted_models.values():
            take_off(model)
        return True

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        for group in self._trainables:
            for parameter in () if group.is_token else group.parameters.values():
                parameter.copy_(parameter.to(dtype))

    def adapter(self) -> Adapter:
        modules = {}
        for component, model in self.adapted_models.items():
            modules.update(self.weights(component, model))
        return Adapter(
            modules=modules,
            metadata={},
            family=self.parts.family.names or self.parts.family.name,
            layers_per_block=layers_of(self.parts.denoiser.config),
        )


def _layers(model: nn.Module) -> list[Any]:
    """What peft has put into a model."""
    return [module for module in model.modules() if hasattr(module, "base_layer")]


class Lora(AdapterMethod):
    """LoRA (Hu et al. 2021, arXiv:2106.09685)."""

    use_dora = False

    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        from peft import LoraConfig

        # The adapter's scale is alpha / rank; peft types alpha as int but takes any number.
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=layers,
            use_dora=self.use_dora,
        )

    def take_over(self, layer: Any, weights: Weights, strength: float) -> None:
        up, down = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
        found = low_rank(weights, down.shape[0], layer.get_base_layer().weight)
        if found is not None:
            fill(up, down, (found[0] * (strength / layer.scaling[ADAPTER]), found[1]))


class Dora(Lora):
    """DoRA (Liu et al. 2024, arXiv:2402.09353)."""

    use_dora = True

    def take_over(self, layer: Any, weights: Weights, strength: float) -> None:
        # W + s(m/n(W + BA) - W), with n the norms of W + BA, is row by row a multiple of
        # W + B'A: another DoRA, whose magnitudes are the norms of its own rows.
        base = layer.get_base_layer().weight.detach()
        if isinstance(weights, LoraWeights) and weights.dora_scale is not None:
            if base.is_meta:
                return
            whole = base.float() + strength * weights.to(device=base.device).delta(base)
            up, down, _ = weights.low_rank()
            product = (up @ down).to(base.device)
            before = base.float().flatten(1)
            kept = weights.dora_scale.to(base.device).float().flatten()
            if kept.numel() != before.shape[0]:
                raise UserError("its magnitudes are those of inputs, not of outputs")
            kept = kept / (before + product).norm(dim=1)
            rows = strength * kept / (1 - strength + strength * kept)
            weights = replace(
                weights,
                up=(up * rows.cpu()[:, None]).reshape(weights.up.shape),
                alpha=float(weights.rank),
                dora_scale=None,
            )
            super().take_over(layer, weights, 1.0)
        else:
            super().take_over(layer, weights, strength)
            if base.is_meta:
                return
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            product = b.detach().flatten(1) @ a.detach().flatten(1) * layer.scaling[ADAPTER]
            whole = base.float() + product.reshape(base.shape)
        vector = layer.lora_magnitude_vector[ADAPTER].weight.data
        vector.copy_(whole.flatten(1).norm(dim=1).reshape(vector.shape))


class Loha(AdapterMethod):
    """LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098)."""

    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(r=rank, alpha=alpha, rank_dropout=dropout, target_modules=layers)

    def take_over(self, layer: Any, weights: Weights, strength: float) -> None:
        pairs = [
            (getattr(layer, f"hada_{w}_a")[ADAPTER], getattr(layer, f"hada_{w}_b")[ADAPTER])
            for w in ("w1", "w2")
        ]
        base = layer.get_base_layer().weight
        rank, scale = pairs[0][1].shape[0], strength / layer.scaling[ADAPTER]
        plain = isinstance(weights, LohaWeights) and weights.t1 is None and not weights.needs_base
        if isinstance(weights, LohaWeights) and plain and weights.rank <= rank:
            weights.delta(base)  # says so where it is of another size
            scale *= weights.alpha / weights.rank
            first: tuple[Tensor, Tensor] | None = (weights.w1_a.float(), weights.w1_b.float())
            second = (weights.w2_a.float(), weights.w2_b.float())
        else:  # a product of low rank times ones
            first = low_rank(weights, rank, base)
            second = (torch.ones(base.shape[0], 1), torch.ones(1, base[0].numel()))
        if first is not None:
            fill(*pairs[0], (first[0] * scale, first[1]))
            fill(*pairs[1], second)


class Lokr(AdapterMethod):
    """LoKr (Yeh et al. 2024, arXiv:2309.14859)."""

    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(r=rank, alpha=alpha, rank_dropout=dropout, target_modules=layers)

    def take_over(self, layer: Any, weights: Weights, strength: float) -> None:
        base = layer.get_base_layer().weight.detach()
        if base.is_meta:
            return
        first, second = layer.lokr_w1[ADAPTER].data, layer.lokr_w2.get(ADAPTER)
        change = weights.delta(base.cpu()).flatten(1) * (strength / layer.scaling[ADAPTER])
        left, right = kronecker(change, *first.shape)
        first.copy_(left)
        if second is not None:
            second.data.copy_(right.reshape(second.shape))
        else:
            up, down = layer.lokr_w2_a[ADAPTER], layer.lokr_w2_b[ADAPTER]
            fill(up, down, cut(right, down.shape[0]))


class Oft(AdapterMethod):
    """OFT (Qiu et al. 2023, arXiv:2306.07280); the rank is the block size."""

    def layers(self, model: nn.Module, component: str) -> list[str]:
        # Turning the overlapping patches of a k x k convolution is not a weight change.
        named = super().layers(model, component)
        kernels = {n: getattr(model.get_submodule(n), "kernel_size", (1,)) for n in named}
        return [name for name in named if max(kernels[name]) == 1]

    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        from peft import OFTConfig

        if dropout:
            # peft makes a dropout layer for OFT and never calls it.
            raise UserError(
                "oft has no dropout",
                where="method.dropout" if self.options.dropout else "method.text_dropout",
                do="Set it to 0, or choose another method.",
            )
        # The Neumann series only approximates the rotation; hosts compute the exact one.
        return OFTConfig(r=0, oft_block_size=rank, target_modules=layers, use_cayley_neumann=False)

    def weights(self, component: str, model: nn.Module) -> dict[str, Weights]:
        # In full: the hosts' OFT turns outputs, and no rotation of outputs does what one of inputs
        # does.
        found = super().weights(component, model).items()
        layers = [layer for layer in _layers(model) if ADAPTER in getattr(layer, "oft_R", ())]
        return {
            name: DiffWeights(weights.delta(layer.get_base_layer().weight.detach().cpu()))
            for (name, weights), layer in zip(found, layers, strict=True)
        }
