"""Damaged weights and configurations of bases: shapes, types, values, parts of two families."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.faults.case import Case, Expected
from tests.faults.inputs import _yamls
from tests.faults.inputs._models import (
    DTYPES,
    FAMILIES,
    FORMS,
    INF,
    NAN,
    PARTS,
    READING,
    SHAPES,
    VALUES,
    Damage,
    Spread,
    change_one,
    controls,
    edit_tensors,
    ending,
    one_case,
    put,
    remove_one,
    replace,
    say,
    set_key,
    template,
    weights_of,
)

PROBES: dict[str, dict[str, tuple[str, ...]]] = {
    "folder": {
        "unet": ("conv_in.weight", "attn1.to_q.weight", "resnets.0.norm1.bias"),
        "vae": ("decoder.conv_in.weight", "encoder.conv_norm_out.bias", "attentions.0.to_q.weight"),
        "text_encoder": ("token_embedding.weight", "q_proj.weight", "final_layer_norm.bias"),
        "text_encoder_2": ("token_embedding.weight", "q_proj.weight", "text_projection.weight"),
    },
    "single": {
        "unet": ("input_blocks.0.0.weight", "attn2.to_k.weight", "out.0.bias"),
        "vae": ("decoder.conv_in.weight", "encoder.norm_out.bias", "mid.attn_1.q.weight"),
        "text_encoder": (
            "0.transformer.text_model.embeddings.token_embedding.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
            "cond_stage_model.model.token_embedding.weight",
        ),
        "text_encoder_2": ("1.model.positional_embedding", "1.model.text_projection"),
    },
}
"""Ends of names: a large, a middling and a small tensor of each part."""


def cases() -> Iterator[Case]:
    """Every class of fault, dealt out over the commands."""
    yield from controls("models")
    yield from _tensors()
    yield from _configs()
    yield from _schedulers()
    yield from _mixtures()
    yield from _metadata()
    yield from _yamls.cases()
    yield from _vaes()
    yield from _overflows()


def _probes(layout: str, part: str) -> list[Callable[[list[str]], str]]:
    ends = PROBES["folder" if layout == "folder" else "single"][part]
    if layout != "folder" and part == "text_encoder":
        return [ending(*ends)]
    return [ending(end) for end in ends]


def _tensors() -> Iterator[Case]:
    """One tensor of each part: all damages in a folder of SD1, a share of them elsewhere."""
    values, shapes = Spread("models", READING), Spread("models", SHAPES)
    number = 0
    for layout, shares in (
        ("folder", (1, 3, 3)),
        ("safetensors", (2, 3, 3)),
        ("ckpt", (6, 6, 6)),
    ):
        for family, share in zip(FAMILIES, shares, strict=True):
            for part in PARTS[family]:
                probes = _probes(layout, part)
                damages: dict[str, tuple[Spread, Damage]] = {}
                for index, (what, change) in enumerate({**VALUES, **DTYPES, **FORMS}.items()):
                    spread = values if what in VALUES else shapes
                    damages[what] = spread, change_one(part, probes[index % len(probes)], change)
                for find, size in zip(probes, ("large", "middling", "small"), strict=False):
                    damages[f"without a {size} tensor"] = shapes, remove_one(part, find)
                if layout == "folder":
                    damages["a strange tensor"] = shapes, _add(part, "what.weight")
                for what, (spread, damage) in damages.items():
                    number += 1
                    # A single file has no configuration: its shapes tell how many words there are.
                    longer = what in ("a row more", "twice as large") and part.startswith("text")
                    # And what hosts store in 8 bits is read there.
                    eight = what.startswith("fp8") and layout == "safetensors"
                    either = eight or (longer and layout != "folder")
                    expected: Expected = "either" if either else "refused"
                    if number % share == 0:
                        yield from spread.cases(
                            family, layout, f"{part} {what}", damage, expected, each=1
                        )


def _add(part: str, name: str) -> Damage:
    def add(tensors: dict[str, Any]) -> None:
        tensors[name] = torch.zeros(4, 4)

    return lambda base: edit_tensors(weights_of(base, part), add)


NOT_COUNTS: dict[str, Any] = {
    "negative": -1,
    "zero": 0,
    "a billion": 10**9,
    "10^18": 10**18,
    "10^400": 10**400,
    "a fraction": 1.5,
    "text": "four",
    "a number as text": "4",
    "an empty list": [],
    "a list of text": ["a", "b"],
    "an object": {"a": 1},
    "NaN": NAN,
    "infinity": INF,
    "a list in lists": [[[[4]]]],
}
COUNTS: dict[str, tuple[str, ...]] = {
    "unet": (
        "in_channels",
        "out_channels",
        "cross_attention_dim",
        "norm_num_groups",
        "layers_per_block",
        "transformer_layers_per_block",
        "attention_head_dim",
        "sample_size",
    ),
    "vae": (
        "in_channels",
        "out_channels",
        "latent_channels",
        "layers_per_block",
        "norm_num_groups",
        "sample_size",
    ),
    "text_encoder": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "vocab_size",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    "text_encoder_2": ("projection_dim", "hidden_size", "num_hidden_layers"),
}
OTHERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "unet": {
        "block_out_channels": (
            None,
            [],
            [0, 0],
            [-32, 64],
            [10**9, 10**9],
            [32],
            [32.5, 64],
            "32",
            32,
            [[32], [64]],
            [32] * 1000,
            [33, 64],
            ["32", "64"],
            {"a": 1},
            [NAN, 64],
        ),
        "down_block_types": (
            None,
            [],
            ["DownBlock2D"],
            ["Nothing2D", "DownBlock2D"],
            [1, 2],
            "CrossAttnDownBlock2D",
            {"a": 1},
            ["AttnDownBlock2D", "DownBlock2D"],
        ),
        "up_block_types": (None, [], ["UpBlock2D"], ["Nothing2D", "UpBlock2D"], [None, None]),
        "mid_block_type": ("Nothing", 1, ["UNetMidBlock2DCrossAttn"], None),
        "act_fn": ("nothing", 1, None, ["silu"]),
        "norm_eps": (-1.0, NAN, "small", None, [1e-5], 0.0, 1e9),
        "use_linear_projection": ("yes", [True], 7),
        "addition_embed_type": ("image", 1, ["text_time"]),
        "time_embedding_type": ("fourier", 1),
        "class_embed_type": ("timestep", 1),
        "num_class_embeds": (10**9, "a"),
        "encoder_hid_dim": (10**9, "a"),
        "encoder_hid_dim_type": ("text_proj", 1),
        "conv_in_kernel": (0, -1, 10**6, "3"),
        "conv_out_kernel": (0, 4, "3"),
        "time_embedding_dim": (0, 10**9, "a"),
        "dropout": ("much", -1.0, 2.0, NAN),
        "freq_shift": ("a", NAN, []),
        "flip_sin_to_cos": ("a", []),
        "downsample_padding": (-1, "a", 10**6),
        "mid_block_scale_factor": ("a", NAN, 0.0, []),
        "resnet_time_scale_shift": ("scale_shift", 1),
        "reverse_transformer_layers_per_block": ("a", [1], [[-1]], 10**9),
        "num_attention_heads": ("a", [1], -1, 10**9),
        "only_cross_attention": ("a", [True]),
        "_class_name": ("AutoencoderKL", 1, ["UNet2DConditionModel"]),
    },
    "vae": {
        "block_out_channels": (None, [], [0] * 4, [-32] * 4, [10**9] * 4, [32], "32", [32.5] * 4),
        "down_block_types": (None, [], ["Nothing"] * 4, "DownEncoderBlock2D", [1] * 4),
        "up_block_types": (None, [], ["Nothing"] * 4, ["UpDecoderBlock2D"], [{}] * 4),
        "act_fn": ("nothing", 1, None),
        "scaling_factor": (0, -1.0, NAN, INF, "a", None, [0.18215], 1e30),
        "shift_factor": (NAN, "a", [0.1], 1e30),
        "use_quant_conv": ("a", False, []),
        "use_post_quant_conv": ("a", False),
        "mid_block_add_attention": (False, "a"),
        "force_upcast": ("a", []),
        "latents_mean": ("a", [NAN], [0.0]),
        "_class_name": ("UNet2DConditionModel", 1),
    },
    "text_encoder": {
        "hidden_act": ("nothing", 1, None, ["gelu"]),
        "layer_norm_eps": (NAN, "a", -1.0, None, []),
        "attention_dropout": ("a", NAN, 2.0, -1.0),
        "initializer_factor": ("a", []),
        "eos_token_id": ("a", -5, 10**9, 1.5),
        "bos_token_id": ("a", [[1]], 10**9),
        "pad_token_id": ("a", -5, 10**9),
        "model_type": (1, "llama"),
        "architectures": (1, ["LlamaForCausalLM"], "CLIPTextModel"),
    },
    "text_encoder_2": {"hidden_act": ("nothing",), "projection_dim": (0, "a", 10**9)},
}


def _configs() -> Iterator[Case]:
    spread = Spread("models", SHAPES)
    for number, family in enumerate(FAMILIES):
        for part in PARTS[family]:
            keys = COUNTS[part]
            for index, key in enumerate(keys):
                bad = list(NOT_COUNTS.items())
                if family != "sd1":
                    # Every value under one family; the others see a share that differs by key.
                    bad = bad[(index + number) % 4 :: 4]
                for what, value in bad:
                    expected: Expected = "refused"
                    damage = set_key(f"{part}/config.json", key, value)
                    yield from spread.cases(
                        family, "folder", f"{part} {key} {what}", damage, expected, each=1
                    )
                if key not in ("sample_size", "in_channels", "out_channels"):
                    damage = set_key(f"{part}/config.json", key, ...)
                    yield from spread.cases(
                        family, "folder", f"{part} {key} missing", damage, "either", each=1
                    )
            if family != "sd1" and part != "text_encoder_2":
                continue
            for key, values in OTHERS[part].items():
                for value in values:
                    damage = set_key(f"{part}/config.json", key, value)
                    name = f"{part} {key} = {json.dumps(value)[:40]}"
                    ex: Expected = "either" if key in UNUSED else "refused"
                    yield from spread.cases(family, "folder", name, damage, ex, each=1)


UNUSED = ("initializer_factor", "architectures", "model_type", "latents_mean", "_class_name")
"""Keys that no computation here reads: whether a strange value is refused is a matter of taste."""

SCHEDULER: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (0, -1, 10**9, 10**18, "a", None, 1.5, [1000], NAN),
    "beta_start": (NAN, INF, -1.0, 2.0, "a", None, [0.1], 0.5),
    "beta_end": (NAN, INF, -1.0, 2.0, "a", None, [0.1], 0.0),
    "beta_schedule": ("nothing", 1, None, ["linear"]),
    "prediction_type": ("nothing", 1, None, "flow_prediction", ["epsilon"], ""),
    "trained_betas": ("a", [NAN], [0.1], [2.0] * 1000, 7),
    "timestep_spacing": ("nothing", 1, None),
    "steps_offset": (-5, "a", 10**9, NAN),
    "rescale_betas_zero_snr": ("a", [], 7),
    "set_alpha_to_one": ("a", 7),
    "skip_prk_steps": ("a",),
    "_class_name": (1, None, "FlowMatchEulerDiscreteScheduler", "Nothing", ["DDIMScheduler"]),
}
OF_FLOW = ("flow_prediction", "FlowMatchEulerDiscreteScheduler")
"""Also what a model of these shapes has that was trained as rectified flow."""


def _schedulers() -> Iterator[Case]:
    spread = Spread("models", (*SHAPES[:6], "train"))
    for index, family in enumerate(FAMILIES):
        for key, values in SCHEDULER.items():
            for value in values if family == "sd1" else values[index::3]:
                damage = set_key("scheduler/scheduler_config.json", key, value)
                name = f"scheduler {key} = {json.dumps(value)[:40]}"
                ex: Expected = "either" if value in OF_FLOW else "refused"
                yield from spread.cases(family, "folder", name, damage, ex, each=1)


def _mixtures() -> Iterator[Case]:
    """A part of another family in place of the base's own."""
    spread = Spread("models", READING, each=1)
    for family in FAMILIES:
        for other in FAMILIES:
            if other == family:
                continue
            for part in PARTS[family]:
                if part not in PARTS[other]:
                    continue
                # The reduced VAEs are alike but for their scale, which is a number like another;
                # the text encoders of SD1 and SD2 too, and the activation makes the family.
                # SDXL's first is SD1's.
                same = part in ("vae", "text_encoder") or "sdxl" not in (family, other)
                whole = _swap(part, other, ("config.json", weights_of(Path(), part).name))
                yield from spread.cases(
                    family, "folder", f"{part} of {other}", whole, "either" if same else "refused"
                )
                if part == "vae" or (part == "text_encoder" and "sdxl" not in (family, other)):
                    continue
                for file in ("config.json", "weights"):
                    name = weights_of(Path(), part).name if file == "weights" else file
                    damage = _swap(part, other, (name,))
                    yield from spread.cases(
                        family,
                        "folder",
                        f"{part} {file} of {other}",
                        damage,
                        "either"
                        if "sdxl" not in (family, other) and file == "config.json"
                        else "refused",
                    )
        for part in PARTS[family]:
            for other in PARTS[family]:
                if other != part:
                    yield from spread.cases(
                        family, "folder", f"{part} weights of its {other}", _weights(part, other)
                    )


def _swap(part: str, family: str, files: tuple[str, ...]) -> Damage:
    def damage(base: Path) -> None:
        for name in files:
            replace(base / part / name, None)
            os.link(template(family, "folder") / part / name, base / part / name)

    return damage


def _weights(part: str, other: str) -> Damage:
    def damage(base: Path) -> None:
        replace(weights_of(base, part), weights_of(base, other).read_bytes())

    return damage


OWN: dict[str, Any] = {
    "not JSON": "{nothing",
    "a list": "[]",
    "null": "null",
    "deep": "[" * 20_000 + "]" * 20_000,
    "lists in it": '{"unet": [], "vae": 1, "text_encoder": "a", "scheduler": []}',
    "a billion channels": '{"unet": {"block_out_channels": [1000000000]}}',
    "a scheduler of NaN": '{"scheduler": {"beta_start": NaN, "prediction_type": "epsilon"}}',
    "text in a scheduler": '{"scheduler": {"beta_start": "a", "_class_name": 7}}',
    "prediction of nothing": '{"scheduler": {"prediction_type": {"a": 1}}}',
    "layers of text": '{"text_encoder": {"num_hidden_layers": "a"}}',
    "a million layers": '{"text_encoder": {"num_hidden_layers": 1000000}}',
}


def _metadata() -> Iterator[Case]:
    """What a file says of itself: a reader may go by shapes, but in one of the two manners."""
    spread = Spread("models", READING, each=1)
    said = [("dreambooth.model", what, text, False) for what, text in OWN.items()]
    for text in ("0x0", "99999999999x99999999999", "-1x-1", "axb", "1x1"):
        said.append(("modelspec.resolution", text, text, True))
    for text in ("nothing", "flow", "\0", "x" * 10_000):
        said.append(("modelspec.prediction_type", repr(text)[:20], text, True))
    for number, (key, what, text, bare) in enumerate(said):
        damage = say(key, text, bare=bare)
        family = FAMILIES[number % 3]
        yield from spread.cases(family, "safetensors", f"{key} {what}", damage, "either")


def _vaes() -> Iterator[Case]:
    """A VAE of its own, given to ``convert``."""
    probes = _probes("folder", "vae")
    damages: dict[str, Damage] = {
        **{n: change_one("vae", probes[0], c) for n, c in {**VALUES, **DTYPES}.items()},
        **{n: change_one("vae", probes[i % 3], c) for i, (n, c) in enumerate(FORMS.items())},
        "one less": remove_one("vae", probes[1]),
        "scale NaN": set_key("vae/config.json", "scaling_factor", NAN),
        "16 channels": set_key("vae/config.json", "latent_channels", 16),
        "no config": lambda base: replace(base / "vae" / "config.json", None),
    }
    for what, damage in damages.items():
        for form in ("folder", "file"):
            if form == "file" and ("config" in what or what in ("scale NaN", "16 channels")):
                continue

            def make(folder: Path, damage: Damage = damage, form: str = form) -> list[str]:
                put(folder, "sd1", "folder")
                other = put(folder, "sd1", "folder", "other")
                damage(other)
                given = other if form == "folder" else weights_of(other, "vae")
                return ["convert", "base", "out", "--vae", str(given.relative_to(folder))]

            read: Expected = "either" if form == "file" and what.startswith("fp8") else "refused"
            yield Case("models", f"--vae {form}: {what}", make, read)


def _overflows() -> Iterator[Case]:
    """Finite numbers that are infinite in the precision asked for."""
    for command in ("to ckpt", "bake"):
        for family in FAMILIES:
            yield one_case(
                "models",
                command,
                family,
                "folder",
                "too large for fp16",
                _large,
                "refused" if command == "to ckpt" else "either",
            )


def _large(base: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(iter(tensors))
        tensors[name] = tensors[name].float() + 1e6

    edit_tensors(weights_of(base, "unet"), change)
