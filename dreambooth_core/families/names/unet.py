"""Module names: diffusers' paths, and what kohya and LDM call the same modules.

kohya writes a path with its dots turned into underscores, so ``to_out_0`` could be split in many
ways. The names of a Stable Diffusion UNet and of a CLIP text encoder form a small language, and
this module parses that language: any number of levels, layers and depths, no table for one size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

_SAMPLER = re.compile(r"(down|up)_blocks_([0-9]{1,3})_\1samplers_0_conv")
_SPOT = re.compile(
    r"(?P<block>mid_block|(?P<side>down|up)_blocks_(?P<i>[0-9]{1,3}))_(?P<kind>resnets|attentions)_"
    r"(?P<j>[0-9]{1,3})_(?P<rest>.+)"
)
_LDM_BLOCK = re.compile(
    r"(?P<side>input|output)_blocks_(?P<n>[0-9]{1,3})_(?P<m>[0-9]{1,3})(?:_(?P<rest>.+))?"
)
_LDM_MIDDLE = re.compile(r"middle_block_(?P<m>[0-9]{1,3})_(?P<rest>.+)")
_TRANSFORMER = re.compile(r"transformer_blocks_([0-9]{1,3})_(.+)")
_TEXT_LAYER = re.compile(r"(encoder_layers|(?:transformer_)?resblocks)_([0-9]{1,3})_(.+)")

RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
"""A resblock's modules in diffusers and in LDM."""

TOP = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}
"""The modules that stand in no block."""


def flat_name(path: str) -> str:
    """A path as kohya writes it."""
    return path.replace(".", "_")


_TOP = {**{flat_name(path): path for path in TOP}, **{ldm: path for path, ldm in TOP.items()}}
_RESNET = {path: path for path in RESNET}
_RESNET_LDM = {ldm: path for path, ldm in RESNET.items()}
_AROUND = {path: path for path in ("norm", "proj_in", "proj_out")}
_ATTENTIONS = [f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")]
_INSIDE = {
    flat_name(path): path
    for path in (*_ATTENTIONS, "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3")
} | {f"attn{n}_to_out": f"attn{n}.to_out.0" for n in (1, 2)}
_TEXT_TOP = {
    "embeddings_token_embedding": "embeddings.token_embedding",
    "embeddings_position_embedding": "embeddings.position_embedding",
    "final_layer_norm": "final_layer_norm",
}
_TEXT = {
    flat_name(path): path
    for path in (
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        *("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"),
    )
}
_TEXT_LDM = {
    "attn_out_proj": "self_attn.out_proj",
    "mlp_c_fc": "mlp.fc1",
    "mlp_c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}


def unet_path(flat: str, layers_per_block: int = 2) -> str | None:
    """A UNet module's path from its name with underscores, diffusers' or LDM's; else ``None``."""
    if flat in _TOP:
        return _TOP[flat]
    if match := _SAMPLER.fullmatch(flat):
        side, i = match.groups()
        return f"{side}_blocks.{i}.{side}samplers.0.conv"
    if match := _SPOT.fullmatch(flat):
        block = match["block"].replace("blocks_", "blocks.")
        return _inside(f"{block}.{match['kind']}.{match['j']}", match["rest"], _RESNET)
    if match := _LDM_MIDDLE.fullmatch(flat):
        spot = {0: "resnets.0", 1: "attentions.0", 2: "resnets.1"}.get(int(match["m"]))
        return _inside(f"mid_block.{spot}", match["rest"], _RESNET_LDM) if spot else None
    match = _LDM_BLOCK.fullmatch(flat)
    if not match or not match["rest"]:
        return None
    n, m, rest, down = int(match["n"]), int(match["m"]), match["rest"], match["side"] == "input"
    level, layer = divmod(n - 1 if down else n, layers_per_block + 1)
    side, last = "down" if down else "up", layer == layers_per_block
    if rest == ("op" if down else "conv"):
        found = last and (m == 0 if down else m in (1, 2))
        return f"{side}_blocks.{level}.{side}samplers.0.conv" if found else None
    if m > 1 or (down and (n == 0 or last)):
        return None
    kind = "attentions" if m else "resnets"
    return _inside(f"{side}_blocks.{level}.{kind}.{layer}", rest, _RESNET_LDM)


def _inside(spot: str, rest: str, resnet: Mapping[str, str]) -> str | None:
    """The path of a module inside a resblock or an attention block."""
    found = resnet if ".resnets." in spot else _AROUND
    if found is _AROUND and (match := _TRANSFORMER.fullmatch(rest)):
        spot, rest, found = f"{spot}.transformer_blocks.{match[1]}", match[2], _INSIDE
    return f"{spot}.{found[rest]}" if rest in found else None


def text_path(flat: str) -> str | None:
    """A CLIP text module's path, ``text_model.`` included, from its name with underscores."""
    if flat == "text_projection":
        return "text_projection"
    flat = flat.removeprefix("text_model_")
    if flat in _TEXT_TOP:
        return f"text_model.{_TEXT_TOP[flat]}"
    match = _TEXT_LAYER.fullmatch(flat)
    if not match:
        return None
    part = (_TEXT if match[1] == "encoder_layers" else _TEXT_LDM).get(match[3])
    return f"text_model.encoder.layers.{match[2]}.{part}" if part else None


def ldm_name(path: str, layers_per_block: int, attention_levels: Iterable[int]) -> str | None:
    """A UNet path under LDM's block numbers, with underscores; ``None`` if it has no LDM name.

    ``attention_levels``: the ``i`` of each ``up_blocks.i`` that has attention: there the
    upsampler stands in slot 2, elsewhere in slot 1.
    """
    if path in TOP:
        return TOP[path]
    parts = path.split(".")
    if parts[0] == "mid_block":
        parts.insert(1, "0")
    if parts[0] not in ("down_blocks", "mid_block", "up_blocks") or len(parts) < 5:
        return None
    i, kind, j = int(parts[1]), parts[2], int(parts[3])
    first = i * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + layers_per_block + 1}_0_op"
    if kind == "upsamplers":
        slot = 2 if i in set(attention_levels) else 1
        return f"output_blocks_{first + layers_per_block}_{slot}_conv"
    if kind not in ("resnets", "attentions"):
        return None
    resnet = kind == "resnets"
    inner = RESNET.get(".".join(parts[4:])) if resnet else "_".join(parts[4:])
    block = {
        "mid_block": f"middle_block_{2 * j if resnet else 1}",
        "down_blocks": f"input_blocks_{1 + first + j}_{0 if resnet else 1}",
        "up_blocks": f"output_blocks_{first + j}_{0 if resnet else 1}",
    }[parts[0]]
    return f"{block}_{inner}" if inner else None


def kernel_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The true shape of a module's weight where a file stores it flat, [out, in * 9] for 3 x 3.

    LoHa and LoKr keep no kernel; in these UNets the name tells where one is.
    """
    if (
        len(shape) == 2
        and shape[1] % 9 == 0
        and name.startswith("unet.")
        and name.rsplit(".", 1)[-1] in _SQUARE
    ):
        return (shape[0], shape[1] // 9, 3, 3)
    return shape


_SQUARE = ("conv1", "conv2", "conv", "conv_in", "conv_out")


def layers_of(unet_config: Mapping[str, Any]) -> int:
    """``layers_per_block`` of a UNet, which LDM's numbered names depend on; 2 if it varies."""
    layers = unet_config.get("layers_per_block", 2)
    return layers if isinstance(layers, int) else 2


def guess_layers_per_block(flat_names: Iterable[str]) -> int:
    """Resblocks per level with which the LDM names in a file are those of modules; 2, the real
    models', if free: only downsamplers and upsamplers tell where a level ends."""
    tries = (2, 1, 3, 4, 5, 6)
    blocks = [name for name in flat_names if _LDM_BLOCK.fullmatch(name)]
    known = [name for name in blocks if any(unet_path(name, layers) for layers in tries)]
    fitting = (layers for layers in tries if all(unet_path(name, layers) for name in known))
    return next(fitting, 2)


def layers_shown(flat_names: Iterable[str]) -> int | None:
    """Resblocks per level where diffusers' names show it: two levels of the way up that both end
    at the same number. ``None`` if they do not."""
    last: dict[str, int] = {}
    for match in filter(None, map(_SPOT.fullmatch, flat_names)):
        if match["side"] == "up":
            last[match["i"]] = max(last.get(match["i"], 0), int(match["j"]))
    ends = set(last.values())
    return ends.pop() if len(last) > 1 and len(ends) == 1 and ends != {0} else None


USUAL_LEVELS = frozenset({1, 2, 3})
"""Which ``up_blocks`` of Stable Diffusion 1 and 2 have attention."""


def attention_levels(paths: Iterable[str], usual: Set[int] = USUAL_LEVELS) -> Set[int]:
    """Which ``up_blocks`` have attention: what the adapter shows, else the usual ones."""
    parts = (path.split(".") for path in paths)
    found = {int(p[1]) for p in parts if p[0] == "up_blocks" and p[2] == "attentions"}
    return found or usual
