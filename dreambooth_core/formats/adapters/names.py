"""Module names: diffusers' paths, and what kohya and LDM call the same modules.

kohya writes a path with its dots turned into underscores, so ``to_out_0`` could be split in many
ways. The names of a Stable Diffusion UNet and of a CLIP text encoder form a small language, and
this module parses that language: any number of levels, layers and depths, no table for one size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

TRANSFORMER = r"transformer_blocks_(?P<k>[0-9]{1,3})_(?P<part>norm[123]|attn[12]_to_[qkv]|"
TRANSFORMER += r"attn[12]_to_out(?:_0)?|ff_net_0_proj|ff_net_2)"
_TRANSFORMER = re.compile(TRANSFORMER)
_SPOT = re.compile(
    r"(?P<side>down|up)_blocks_(?P<i>[0-9]{1,3})_(?P<kind>resnets|attentions)_(?P<j>[0-9]{1,3})_"
)
_MIDDLE = re.compile(r"mid_block_(?P<kind>resnets|attentions)_(?P<j>[0-9]{1,3})_")
_SAMPLER = re.compile(r"(down|up)_blocks_([0-9]{1,3})_(downsamplers|upsamplers)_0_conv")
_LDM_BLOCK = re.compile(
    r"(?P<side>input|output)_blocks_(?P<n>[0-9]{1,3})_(?P<m>[0-9]{1,3})(?:_(?P<rest>.+))?"
)
_LDM_MIDDLE = re.compile(r"middle_block_(?P<m>[0-9]{1,3})_(?P<rest>.+)")
_LAYER = re.compile(
    r"encoder_layers_([0-9]{1,3})_(self_attn_[qkv]_proj|self_attn_out_proj|mlp_fc[12]|"
    r"layer_norm[12])"
)
_OPEN_CLIP = re.compile(
    r"(?:transformer_)?resblocks_([0-9]{1,3})_(attn_out_proj|mlp_c_fc|mlp_c_proj|"
    r"ln_[12])"
)

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

_ATTENTION = ("norm", "proj_in", "proj_out")
_TOP_FLAT = {path.replace(".", "_"): path for path in TOP}
_TOP_LDM = {ldm: path for path, ldm in TOP.items()}
_RESNET_LDM = {ldm: path for path, ldm in RESNET.items()}
_TEXT_TOP = {
    "embeddings_token_embedding": "embeddings.token_embedding",
    "embeddings_position_embedding": "embeddings.position_embedding",
    "final_layer_norm": "final_layer_norm",
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
    if flat in _TOP_FLAT:
        return _TOP_FLAT[flat]
    if match := _SAMPLER.fullmatch(flat):
        side, i, kind = match.groups()
        return f"{side}_blocks.{i}.{kind}.0.conv" if kind.startswith(side) else None
    if match := _SPOT.match(flat):
        spot = f"{match['side']}_blocks.{match['i']}.{match['kind']}.{match['j']}"
        return _inside(spot, match["kind"], flat[match.end() :])
    if match := _MIDDLE.match(flat):
        spot = f"mid_block.{match['kind']}.{match['j']}"
        return _inside(spot, match["kind"], flat[match.end() :])
    return _from_ldm(flat, layers_per_block)


def text_path(flat: str) -> str | None:
    """A CLIP text module's path, ``text_model.`` included, from its name with underscores."""
    if flat == "text_projection":
        return "text_projection"
    if flat.startswith("text_model_"):
        flat = flat[len("text_model_") :]
    if flat in _TEXT_TOP:
        return f"text_model.{_TEXT_TOP[flat]}"
    if match := _LAYER.fullmatch(flat):
        layer, part = match.groups()
        for joint in ("self_attn_", "mlp_"):
            part = part.replace(joint, f"{joint[:-1]}.", 1) if part.startswith(joint) else part
        return f"text_model.encoder.layers.{layer}.{part}"
    if match := _OPEN_CLIP.fullmatch(flat):
        layer, part = match.groups()
        return f"text_model.encoder.layers.{layer}.{_TEXT_LDM[part]}"
    return None


def flat_name(path: str) -> str:
    """A path as kohya writes it."""
    return path.replace(".", "_")


def ldm_name(path: str, layers_per_block: int, attention_levels: Iterable[int]) -> str | None:
    """A UNet path under LDM's block numbers, with underscores; ``None`` if it has no LDM name.

    ``attention_levels``: the ``i`` of each ``up_blocks.i`` that has attention: there the
    upsampler stands in slot 2, elsewhere in slot 1.
    """
    if path in TOP:
        return TOP[path]
    parts = path.split(".")
    per_level = layers_per_block + 1
    if parts[0] == "mid_block" and len(parts) > 3:
        slot = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return _join(f"middle_block_{slot}", parts[1], parts[3:])
    if parts[0] not in ("down_blocks", "up_blocks") or len(parts) < 5:
        return None
    i, kind, j = int(parts[1]), parts[2], int(parts[3])
    if kind == "downsamplers":
        return f"input_blocks_{(i + 1) * per_level}_0_op"
    if kind == "upsamplers":
        slot = 2 if i in set(attention_levels) else 1
        return f"output_blocks_{i * per_level + layers_per_block}_{slot}_conv"
    slot = 1 if kind == "attentions" else 0
    if parts[0] == "down_blocks":
        return _join(f"input_blocks_{1 + i * per_level + j}_{slot}", kind, parts[4:])
    return _join(f"output_blocks_{i * per_level + j}_{slot}", kind, parts[4:])


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
    """Resblocks per level that agree with the LDM names in a file; 2, the real models', if free.

    Every ``layers + 1``-th input block is a downsampler and holds nothing else, and upsamplers
    stand at the end of a level.
    """
    blocks = [m for m in map(_LDM_BLOCK.fullmatch, flat_names) if m]

    def fits(layers: int) -> bool:
        for match in blocks:
            n, rest = int(match["n"]), match["rest"] or ""
            if match["side"] == "input" and n > 0:
                if (rest == "op") != (n % (layers + 1) == 0):
                    return False
            elif match["side"] == "output" and rest == "conv" and n % (layers + 1) != layers:
                return False
        return True

    return next((layers for layers in (2, 1, 3, 4, 5, 6) if fits(layers)), 2)


def layers_shown(flat_names: Iterable[str]) -> int | None:
    """Resblocks per level where diffusers' names show it: two levels of the way up that both end
    at the same number. ``None`` if they do not."""
    last: dict[str, int] = {}
    for match in filter(None, map(_SPOT.match, flat_names)):
        if match["side"] == "up":
            last[match["i"]] = max(last.get(match["i"], 0), int(match["j"]))
    ends = set(last.values())
    return ends.pop() if len(last) > 1 and len(ends) == 1 and ends != {0} else None


def attention_levels(paths: Iterable[str], family: str | None) -> set[int]:
    """Which ``up_blocks`` have attention: what the adapter shows, else the family's layout."""
    found: set[int] = set()
    for path in paths:
        parts = path.split(".")
        if parts[0] == "up_blocks" and parts[2] == "attentions":
            found.add(int(parts[1]))
    return found or ({0, 1} if family == "sdxl" else {1, 2, 3})


def _inside(spot: str, kind: str, rest: str) -> str | None:
    """The path of a module inside a resblock or an attention block, named as in diffusers."""
    if kind == "resnets":
        return f"{spot}.{rest}" if rest in RESNET else None
    return _attention(spot, rest)


def _attention(spot: str, rest: str) -> str | None:
    if rest in _ATTENTION:
        return f"{spot}.{rest}"
    match = _TRANSFORMER.fullmatch(rest)
    if not match:
        return None
    part = match["part"]
    if part.startswith("attn"):
        name, to = part.split("_", 1)
        part = f"{name}.to_out.0" if to.startswith("to_out") else f"{name}.{to}"
    elif part.startswith("ff"):
        part = {"ff_net_0_proj": "ff.net.0.proj", "ff_net_2": "ff.net.2"}[part]
    return f"{spot}.transformer_blocks.{match['k']}.{part}"


def _from_ldm(flat: str, layers: int) -> str | None:
    if flat in _TOP_LDM:
        return _TOP_LDM[flat]
    if match := _LDM_MIDDLE.fullmatch(flat):
        m = int(match["m"])
        if m == 1:
            return _attention("mid_block.attentions.0", match["rest"])
        return _resnet(f"mid_block.resnets.{m // 2}", match["rest"]) if m in (0, 2) else None
    match = _LDM_BLOCK.fullmatch(flat)
    if not match or not match["rest"]:
        return None
    n, m, rest = int(match["n"]), int(match["m"]), match["rest"]
    level, layer = divmod(n - 1 if match["side"] == "input" else n, layers + 1)
    side = "down" if match["side"] == "input" else "up"
    if match["side"] == "input" and rest == "op":
        return f"down_blocks.{level}.downsamplers.0.conv" if m == 0 and layer == layers else None
    if match["side"] == "input" and (n == 0 or layer == layers):
        return None
    if match["side"] == "output" and rest == "conv":
        return f"up_blocks.{level}.upsamplers.0.conv" if layer == layers and m in (1, 2) else None
    if m == 0:
        return _resnet(f"{side}_blocks.{level}.resnets.{layer}", rest)
    return _attention(f"{side}_blocks.{level}.attentions.{layer}", rest) if m == 1 else None


def _resnet(spot: str, rest: str) -> str | None:
    return f"{spot}.{_RESNET_LDM[rest]}" if rest in _RESNET_LDM else None


def _join(block: str, kind: str, rest: list[str]) -> str | None:
    if kind == "resnets":
        inner = RESNET.get(".".join(rest))
        return f"{block}_{inner}" if inner else None
    return f"{block}_{'_'.join(rest)}" if kind == "attentions" else None
