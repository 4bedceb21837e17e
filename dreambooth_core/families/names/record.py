"""How the layers of one family are called: by diffusers, and by the hosts' own checkpoints.

Names are written with ``#`` for a block's number: ``transformer_blocks.#.attn.to_q``. Nothing here
needs torch: adapter files are told apart, renamed and judged by their names and sizes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property

DIFFUSERS, NATIVE = "diffusers", "native"

Form = tuple[str, str]
"""A prefix, and whose names stand behind it. Behind a prefix that ends in ``_`` dots are written
as underscores, as kohya does."""

Sizes = Mapping[str, tuple[int | None, int | None]]
"""``(outputs, inputs)`` by a layer's name, where the file tells."""

FLAT: Form = ("lora_unet_", NATIVE)
GENERIC: tuple[Form, ...] = (FLAT, ("diffusion_model.", NATIVE))
"""What ComfyUI, and Forge after it, load for every model: their own names of its layers."""

TABLES: tuple[Form, ...] = (
    *GENERIC,
    ("diffusion_model.", DIFFUSERS),
    ("transformer.", DIFFUSERS),
    ("lycoris_", DIFFUSERS),
    ("", DIFFUSERS),
)
"""What they load where they have a table of diffusers' names too, as of Lumina's class."""

HOSTS = ("A1111", "Forge", "Forge Neo", "ComfyUI", "diffusers")

_BLOCK = re.compile(r"_([0-9]{1,4})(?=_|$)")


@dataclass(frozen=True)
class Fused:
    """A layer of the hosts that holds several of diffusers', one below the other."""

    native: str
    parts: tuple[str, ...]
    """diffusers' names, from the first row down."""
    rows: tuple[int, ...] = (1, 1, 1)
    """Their shares of the rows. The first part has as many rows as inputs."""


def qkv(native: str, attention: str, rows: tuple[int, ...] = (1, 1, 1)) -> Fused:
    """The hosts' joined queries, keys and values of one of diffusers' attentions."""
    return Fused(native, tuple(f"{attention}.to_{part}" for part in "qkv"), rows)


@dataclass(frozen=True)
class Variant:
    """A size in which a family exists."""

    width: int
    blocks: Mapping[str, int]
    """How many of each kind, by diffusers' name of the list."""
    label: str = ""
    """What a model of this size is called, where sizes are different models."""


@dataclass(frozen=True)
class Layer:
    """A layer whose name was understood."""

    template: str
    """With ``#``: diffusers' name, or of a fused layer the hosts'."""
    block: int | None = None
    fused: Fused | None = None
    swapped: bool = False
    """It was named as the hosts do and its halves stand the other way round there."""

    @property
    def path(self) -> str:
        return self.template.replace("#", str(self.block))


@dataclass(frozen=True)
class FamilyNames:
    """What adapters' files say of one family, and what hosts look for in them."""

    family: str
    label: str
    _: KW_ONLY
    base_version: str = ""
    """What kohya's scripts write as ``ss_base_model_version``."""
    architecture: str = ""
    """``modelspec.architecture`` (SAI model spec 1.0.0)."""
    versions: tuple[str, ...] = ()
    """What else ``ss_base_model_version`` may begin with."""
    known_by: str = ""
    """What stands in every ``modelspec.architecture`` of this family."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """What else A1111 looks at in kohya's metadata. One that is true tells the family."""
    implementation: str = ""
    """``modelspec.implementation``."""
    hub_tag: str = ""
    """Under which the hub lists its models, where that is not the family's name."""
    text_prefix: str = "lora_te1"
    """What kohya calls its first text encoder."""
    clips: int = 0
    """How many CLIP text encoders hosts number in kohya's names; 0: there is one, or none."""
    t5: str = ""
    """The numbers under which ComfyUI knows its T5 in kohya's names."""
    llm_hosts: tuple[str, ...] = ("ComfyUI",)
    """Those that change a language model that reads its prompts."""
    lokr_in_diffusers: bool = False

    @property
    def name(self) -> str:
        """Under which it is registered: the family's."""
        return self.family

    def is_named(self, metadata: Mapping[str, str]) -> bool:
        """Whether a file's metadata name this family."""
        version = metadata.get("ss_base_model_version", "").lower()
        architecture = metadata.get("modelspec.architecture", "").lower()
        return bool(
            (version and version == self.base_version)
            or version.startswith(self.versions)
            or (architecture and architecture == self.architecture)
            or (self.known_by and self.known_by in architecture)
            or any(v == "True" and metadata.get(key) == v for key, v in self.marks.items())
        )

    def runs_on(self, host: str) -> bool:
        """Whether a host runs this family."""
        raise NotImplementedError

    def loads(self, raw: str, host: str) -> bool:
        """Whether a host that runs this family knows a layer of the denoiser under the name in a
        file."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerNames(FamilyNames):
    """What is known of the names of one family's diffusion transformer."""

    layers: Mapping[str, str]
    """The hosts' name by diffusers', for layers that are one in both."""
    fused: tuple[Fused, ...] = ()
    swapped: frozenset[str] = frozenset()
    """diffusers' names of layers whose halves (scale, shift) the hosts keep the other way round."""
    unknown_to_hosts: frozenset[str] = frozenset()
    """diffusers' names that the hosts' own tables from diffusers lack."""
    hosts: Mapping[str, tuple[Form, ...]] = field(default_factory=dict)
    """What each host loads; one that is missing does not run this family."""
    few: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """All layers, by diffusers' names, that a host's table has, where it lacks some."""
    written: str = "comfyui"
    """The layout that most hosts load: ``kohya``, ``comfyui`` or ``diffusers``."""
    comfyui: str = NATIVE
    """Whose names are written behind ``diffusion_model.``: diffusers' where every host maps them,
    because joining separate layers raises the rank."""
    variants: tuple[Variant, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Outputs by inputs of layers that tell this family from one with equal names."""
    beside: str = ""
    """With what diffusers' names begin of layers in a network beside the transformer."""

    @cached_property
    def _known(self) -> dict[str, tuple[str, Fused | None, bool]]:
        """``(template, fused, by the hosts' name)`` by the name with underscores alone."""
        known: dict[str, tuple[str, Fused | None, bool]] = {}
        for each in self.fused:
            known[_flat(each.native)] = (each.native, each, True)
            for part in each.parts:
                known[_flat(part)] = (part, None, False)
        for diffusers, native in self.layers.items():
            known.setdefault(_flat(native), (diffusers, None, True))
        for diffusers in self.layers:
            known[_flat(diffusers)] = (diffusers, None, False)
            if diffusers.endswith(".to_out.0"):
                known.setdefault(_flat(diffusers)[:-2], (diffusers, None, False))
        return known

    @cached_property
    def _parts(self) -> dict[str, Fused]:
        return {part: fused for fused in self.fused for part in fused.parts}

    def find(self, name: str) -> Layer | None:
        """A layer from its name without a prefix, with dots or underscores, diffusers' or the
        hosts'; ``None`` if the family has no such layer."""
        flat = _flat(name)
        match, entry = None, self._known.get(flat)
        if entry is None and (match := _BLOCK.search(flat)):
            entry = self._known.get(f"{flat[: match.start()]}_#{flat[match.end() :]}")
        if entry is None:
            return None
        template, fused, native = entry
        # One name may be both sides' own: then nothing is turned round.
        swapped = native and template in self.swapped
        return Layer(template, int(match[1]) if match else None, fused, swapped)

    def fused_of(self, template: str) -> Fused | None:
        """The hosts' fused layer that holds this one of diffusers'."""
        return self._parts.get(template)

    def agrees(self, layers: Mapping[str, Layer], sizes: Sizes) -> bool:
        """Whether a size of this family has so many blocks, and layers of such shares: other models
        have the same names, and are deeper or read a wider text."""
        measured = _Measured.of(self, layers, sizes)
        room = not self.variants or any(measured.fits(variant) for variant in self.variants)
        return room and not measured.contradictions

    def native(self, layer: Layer) -> str:
        """The hosts' path of a layer that is one in both."""
        return self.layers.get(layer.template, layer.template).replace("#", str(layer.block))

    def templates(self) -> Iterator[str]:
        """All of diffusers' names."""
        yield from self.layers
        yield from self._parts

    def runs_on(self, host: str) -> bool:
        return host in self.hosts

    def loads(self, raw: str, host: str) -> bool:
        for prefix, side in self.hosts.get(host, ()):
            if not raw.startswith(prefix):
                continue
            rest = raw[len(prefix) :]
            layer = self.find(rest)
            if layer is None or (prefix.endswith("_") and "." in rest):
                continue
            if layer.template not in self.few.get(host, (layer.template,)):
                continue
            if self._is_spelled(rest, layer, side, flat=prefix.endswith("_")):
                return True
        return False

    def _is_spelled(self, spelled: str, layer: Layer, side: str, flat: bool) -> bool:
        """Whether a side writes a layer's name so."""
        name = self.native(layer) if side == NATIVE and not layer.fused else layer.path
        if side == NATIVE:
            known = layer.fused is not None or layer.template not in self._parts
        else:
            known = layer.fused is None and layer.template not in self.unknown_to_hosts
        return known and spelled == (_flat(name) if flat else name)


def recognise(
    families: Iterable[LayerNames], sizes: Sizes
) -> tuple[LayerNames, dict[str, Layer]] | None:
    """The family whose names these are, and its layers by the names given (without prefixes).

    Families that share names are told apart by sizes, block counts and the order of the list.
    """
    every = (
        (names, {name: layer for name in sizes if (layer := names.find(name)) is not None})
        for names in families
    )
    fitting = [(names, found) for names, found in every if found]
    return max(fitting, key=lambda each: _fit(each[0], each[1], sizes), default=None)


def variant_of(names: LayerNames, found: Mapping[str, Layer], sizes: Sizes) -> Variant | None:
    """The one size of a family that has layers as wide as these, and so many; None where none or
    several do.

    Args:
        found: the layers, by the names of ``sizes``.
    """
    measured = _Measured.of(names, found, sizes)
    fitting = [v for v in names.variants if v.width in measured.widths and measured.fits(v)]
    return fitting[0] if len(fitting) == 1 else None


@dataclass(frozen=True)
class _Measured:
    """What sizes and numbers of layers say of a model."""

    contradictions: int
    widths: set[int]
    highest: dict[str, int]
    """The last block's number, by diffusers' name of the list."""

    @classmethod
    def of(cls, names: LayerNames, found: Mapping[str, Layer], sizes: Sizes) -> _Measured:
        contradictions = 0
        widths: set[int] = set()
        highest: dict[str, int] = {}
        for name, layer in found.items():
            out, inputs = sizes[name]
            ratio = names.ratios.get(layer.template)
            if ratio is not None and out and inputs and abs(out / inputs - ratio) > 0.01:
                contradictions += 1
            template = layer.fused.parts[0] if layer.fused else layer.template
            telling = layer.fused is not None or template.endswith(("to_q", "to_qkv_mlp_proj"))
            if inputs and telling:
                widths.add(inputs)
            if layer.block is not None:
                kind = template.split(".#")[0]
                highest[kind] = max(highest.get(kind, 0), layer.block)
        return cls(contradictions, widths, highest)

    def fits(self, variant: Variant) -> bool:
        """Whether a model of this size has so many blocks."""
        return all(n < variant.blocks.get(kind, 1 << 30) for kind, n in self.highest.items())


def _fit(names: LayerNames, found: Mapping[str, Layer], sizes: Sizes) -> tuple[int, ...]:
    """How well names and sizes agree: ``(layers, -contradictions, blocks, width, all blocks)``."""
    measured = _Measured.of(names, found, sizes)
    fitting = [variant for variant in names.variants if measured.fits(variant)]
    wide = any(variant.width in measured.widths for variant in fitting)
    exact = any(
        all(n + 1 == variant.blocks.get(kind) for kind, n in measured.highest.items())
        for variant in fitting
        if measured.highest
    )
    return len(found), -measured.contradictions, bool(fitting), wide, exact


def _flat(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")
