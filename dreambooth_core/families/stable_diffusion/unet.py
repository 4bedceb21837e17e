"""The UNet: its plan, read off a configuration or off tensor shapes, and its pairs of names.

The single file numbers its blocks in one row, ``input_blocks.0 … n`` and ``output_blocks.0 … m``
(the ``UNetModel`` of latent diffusion); diffusers groups them by level. With L levels of n
resblocks, a level takes n input blocks and one more for its downsampler, and n + 1 output blocks;
an upsampler is the last layer of its level's last output block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.stable_diffusion.config_rules import UNET
from dreambooth_core.formats.checkpoints.pairs import Pair, module, modules
from dreambooth_core.formats.checkpoints.rules import NOTHING, each, shown

Shapes = Mapping[str, Sequence[int]]


def dimension(shapes: Shapes, name: str, axis: int) -> int:
    """One dimension of a weight. Raises ``UserError`` if there is no such weight or dimension."""
    if name not in shapes:
        raise UserError(f"the weight {name} is missing")
    shape = shapes[name]
    if axis >= len(shape) or shape[axis] < 1:
        raise UserError(f"the weight {name} has the shape {list(shape)}")
    return int(shape[axis])


@dataclass(frozen=True)
class Level:
    """One resolution of the UNet. Depths count transformer blocks; 0 is a resblock alone."""

    channels: int
    down: tuple[int, ...]
    up: tuple[int, ...]

    @property
    def attends(self) -> bool:
        """Whether this level has attention."""
        return any(self.down + self.up)


@dataclass(frozen=True)
class UNetPlan:
    """Everything about a UNet that its weights' names and shapes depend on."""

    in_channels: int
    out_channels: int
    levels: tuple[Level, ...]
    middle: int | None
    """Transformer depth of the middle block, or ``None`` where there is no middle block."""
    context: int
    """Width of the text embedding."""
    linear: bool
    """Whether the projections around a transformer are linear layers (SD2, SDXL) or 1×1
    convolutions (SD1)."""
    added: int | None
    """Width of the vector of added conditions (SDXL), or ``None``."""

    def attends(self, level: Level) -> bool:
        """Whether a level has attention, or the middle block behind it."""
        return level.attends or bool(level is self.levels[-1] and self.middle)


def plan_from_config(config: Mapping[str, Any]) -> UNetPlan:
    """The plan of a diffusers ``UNet2DConditionModel`` configuration.

    Raises:
        Unsupported: the configuration asks for something that the single-file layout cannot say.
    """
    for name, rule in {**UNET, "time_cond_proj_dim": NOTHING}.items():
        if name in config and not rule.holds(config[name]):
            value = shown(config[name])
            raise Unsupported(f"a UNet with {name} = {value} has no single-file layout")
    channels = list(config["block_out_channels"])
    layers = each(config.get("layers_per_block", 2), len(channels))
    depths = each(config.get("transformer_layers_per_block", 1), len(channels))
    reverse = config.get("reverse_transformer_layers_per_block")
    up_depths = list(reversed(reverse)) if reverse else depths
    downs = list(config["down_block_types"])
    ups = list(reversed(config["up_block_types"]))
    levels = []
    for i in range(len(channels)):
        down = _depths(depths[i], layers[i]) if downs[i].startswith("CrossAttn") else None
        up = _depths(up_depths[i], layers[i] + 1) if ups[i].startswith("CrossAttn") else None
        levels.append(Level(channels[i], down or (0,) * layers[i], up or (0,) * (layers[i] + 1)))
    last = depths[-1][0] if isinstance(depths[-1], (list, tuple)) else depths[-1]
    added = config.get("addition_embed_type") == "text_time"
    return UNetPlan(
        in_channels=int(config.get("in_channels", 4)),
        out_channels=int(config.get("out_channels", 4)),
        levels=tuple(levels),
        middle=int(last) if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else None,
        context=int(config["cross_attention_dim"]),
        linear=bool(config.get("use_linear_projection", False)),
        added=int(config["projection_class_embeddings_input_dim"]) if added else None,
    )


def plan_from_shapes(shapes: Shapes) -> UNetPlan:
    """The plan of a UNet in the single file's names, without its prefix.

    Raises:
        UserError: the names are not those of a latent diffusion UNet.
    """
    width = dimension(shapes, "input_blocks.0.0.weight", 0)
    levels = _levels(shapes)
    if levels[0].channels != width:
        raise Unsupported("the UNet's first level is wider than its first convolution")
    middle = "middle_block.0.in_layers.2.weight" in shapes
    keys = next((k for k in shapes if k.endswith("attn2.to_k.weight")), None)
    if keys is None:
        raise Unsupported("this UNet has no cross-attention: it does not take text")
    projection = next((s for k, s in shapes.items() if k.endswith(".proj_in.weight")), ())
    added = "label_emb.0.0.weight"
    return UNetPlan(
        in_channels=dimension(shapes, "input_blocks.0.0.weight", 1),
        out_channels=dimension(shapes, "out.2.weight", 0),
        levels=levels,
        middle=_depth(shapes, "middle_block.1") if middle else None,
        context=dimension(shapes, keys, 1),
        linear=len(projection) == 2,
        added=dimension(shapes, added, 1) if added in shapes else None,
    )


def pairs_of(plan: UNetPlan) -> list[Pair]:
    """Every weight of the UNet: single file (without prefix) and diffusers."""
    pairs = [
        *module("time_embed.0", "time_embedding.linear_1"),
        *module("time_embed.2", "time_embedding.linear_2"),
        *module("input_blocks.0.0", "conv_in"),
        *module("out.0", "conv_norm_out"),
        *module("out.2", "conv_out"),
    ]
    if plan.added is not None:
        pairs += module("label_emb.0.0", "add_embedding.linear_1")
        pairs += module("label_emb.0.2", "add_embedding.linear_2")
    pairs += _down_pairs(plan)
    if plan.middle is not None:
        pairs += _resblock("middle_block.0", "mid_block.resnets.0", skip=False)
        pairs += _transformer("middle_block.1", "mid_block.attentions.0", plan.middle)
        pairs += _resblock("middle_block.2", "mid_block.resnets.1", skip=False)
    return pairs + _up_pairs(plan)


def _down_pairs(plan: UNetPlan) -> list[Pair]:
    pairs: list[Pair] = []
    index, width = 1, plan.levels[0].channels
    for i, level in enumerate(plan.levels):
        for j, depth in enumerate(level.down):
            here, there = f"input_blocks.{index}", f"down_blocks.{i}"
            skip = width != level.channels
            pairs += _resblock(f"{here}.0", f"{there}.resnets.{j}", skip=skip)
            pairs += _transformer(f"{here}.1", f"{there}.attentions.{j}", depth)
            index, width = index + 1, level.channels
        if i < len(plan.levels) - 1:
            pairs += module(f"input_blocks.{index}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
            index += 1
    return pairs


def _up_pairs(plan: UNetPlan) -> list[Pair]:
    pairs: list[Pair] = []
    index = 0
    for i, level in enumerate(reversed(plan.levels)):
        for j, depth in enumerate(level.up):
            here, there = f"output_blocks.{index}", f"up_blocks.{i}"
            pairs += _resblock(f"{here}.0", f"{there}.resnets.{j}", skip=True)
            pairs += _transformer(f"{here}.1", f"{there}.attentions.{j}", depth)
            if j == len(level.up) - 1 and i < len(plan.levels) - 1:
                slot = 2 if depth else 1
                pairs += module(f"{here}.{slot}.conv", f"{there}.upsamplers.0.conv")
            index += 1
    return pairs


_RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}


def _resblock(single: str, diffusers: str, *, skip: bool) -> list[Pair]:
    pairs = modules(single, diffusers, _RESBLOCK)
    if skip:
        pairs += module(f"{single}.skip_connection", f"{diffusers}.conv_shortcut")
    return pairs


_WITHOUT_BIAS = ("to_q", "to_k", "to_v")
_BLOCK = (
    *(f"attn{n}.{layer}" for n in (1, 2) for layer in (*_WITHOUT_BIAS, "to_out.0")),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)


def _transformer(single: str, diffusers: str, depth: int) -> list[Pair]:
    """A spatial transformer; inside it the names are the same in both worlds."""
    if not depth:
        return []
    inside = [f"transformer_blocks.{n}.{layer}" for n in range(depth) for layer in _BLOCK]
    return [
        pair
        for name in ("norm", "proj_in", "proj_out", *inside)
        for pair in module(
            f"{single}.{name}", f"{diffusers}.{name}", bias=not name.endswith(_WITHOUT_BIAS)
        )
    ]


def _levels(shapes: Shapes) -> tuple[Level, ...]:
    """Each level, the finest first: channels and depths along the input and output blocks."""
    downs: list[tuple[int, list[int]]] = []
    fresh, index = True, 1
    while True:
        here = f"input_blocks.{index}"
        conv = f"{here}.0.in_layers.2.weight"
        if f"{here}.0.op.weight" in shapes:
            fresh = True
        elif conv in shapes:
            if fresh:
                downs.append((dimension(shapes, conv, 0), []))
            downs[-1][1].append(_depth(shapes, f"{here}.1"))
            fresh = False
        else:
            break
        index += 1
    if not downs:
        raise UserError("the UNet has no resblocks")
    ups = count()
    return tuple(
        Level(
            channels,
            tuple(down),
            tuple(_depth(shapes, f"output_blocks.{next(ups)}.1") for _ in range(len(down) + 1)),
        )
        for channels, down in reversed(downs)
    )[::-1]


def _depth(shapes: Shapes, here: str) -> int:
    """How many transformer blocks lie under a name; 0 where it is no transformer."""
    depth = 0
    while f"{here}.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def _depths(value: Any, blocks: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),) * blocks
