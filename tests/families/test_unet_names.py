"""Names: every module of every layout has exactly one name, and the name leads back to it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.families.names import STABLE_DIFFUSION, UNetNames
from dreambooth_core.families.names import unet as names
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.formats.adapters.read import module_name
from dreambooth_core.formats.adapters.write import kohya_name
from tests.helpers.reduced_models import meta_tensors, unet_of


def stable(family: str) -> UNetNames:
    return next(each for each in STABLE_DIFFUSION if each.family == family)


TRANSFORMER = [
    "norm1",
    "norm2",
    "norm3",
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
]


@st.composite
def unets(draw: st.DrawFn) -> tuple[int, list[str]]:
    """Resblocks per level, and the module paths of a UNet of any size."""
    layers = draw(st.integers(1, 4))
    levels = draw(st.integers(1, 6))
    depths = draw(st.lists(st.integers(0, 3), min_size=levels, max_size=levels))
    paths = list(names.TOP)
    for level, depth in enumerate(depths):
        for side, count in (("down", layers), ("up", layers + 1)):
            block = f"{side}_blocks.{level}"
            here = depth if side == "down" else depths[levels - 1 - level]
            for j in range(count):
                paths += [f"{block}.resnets.{j}.{part}" for part in names.RESNET]
                if here:
                    paths += attention(f"{block}.attentions.{j}", here)
            if level < levels - 1:
                paths.append(f"{block}.{side}samplers.0.conv")
    paths += [f"mid_block.resnets.{j}.{part}" for j in (0, 1) for part in names.RESNET]
    return layers, paths + attention("mid_block.attentions.0", max(1, depths[-1]))


def attention(spot: str, depth: int) -> list[str]:
    inner = [f"{spot}.transformer_blocks.{k}.{part}" for k in range(depth) for part in TRANSFORMER]
    return [f"{spot}.norm", f"{spot}.proj_in", f"{spot}.proj_out", *inner]


@settings(max_examples=60, deadline=None)
@given(unets())
def test_no_path_is_lost_or_doubled_in_either_naming(unet: tuple[int, list[str]]) -> None:
    layers, paths = unet
    levels = names.attention_levels(paths)
    for name in (
        {p: names.flat_name(p) for p in paths},
        {p: names.ldm_name(p, layers, levels) or "" for p in paths},
    ):
        assert len(set(name.values())) == len(paths)
        assert {p: names.unet_path(flat, layers) for p, flat in name.items()} == {
            p: p for p in paths
        }


@settings(max_examples=40, deadline=None)
@given(unets())
def test_the_layers_are_guessed_from_ldm_names(unet: tuple[int, list[str]]) -> None:
    layers, paths = unet
    levels = names.attention_levels(paths)
    flat = [names.ldm_name(p, layers, levels) or "" for p in paths]
    if any("downsamplers" in p for p in paths):
        assert names.guess_layers_per_block(flat) == layers


def test_two_layers_are_assumed_where_nothing_tells() -> None:
    assert names.guess_layers_per_block([]) == 2
    assert names.guess_layers_per_block(["middle_block_1_proj_in"]) == 2
    # In the real layout input block 3 is a downsampler: attention there means one layer a level.
    assert names.guess_layers_per_block(["input_blocks_3_1_proj_in"]) == 1


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_module_of_the_full_models_has_a_name(family: str) -> None:
    configs = stock_configs(family)
    found: set[str] = set()
    count = 0
    for component, config in configs.items():
        if component == "vae":
            continue
        tensors = meta_tensors(component, config)
        modules = {k.rpartition(".")[0] for k in tensors if k.endswith(".weight")}
        levels = names.attention_levels(modules, stable(family).attention_levels)
        for module in modules:
            name = f"{component}.{module}"
            kohya = kohya_name(name, stable(family), 2, levels)
            assert module_name(kohya) == name
            assert module_name(name) == name
            found.add(kohya)
            count += 1
    assert len(found) == count


def test_reduced_sdxl_with_one_layer_a_level() -> None:
    tensors = meta_tensors("unet", unet_of("sdxl", (32, 64, 64), blocks=1, context=64))
    modules = sorted({k.rpartition(".")[0] for k in tensors if k.endswith(".weight")})
    levels = names.attention_levels(modules, stable("sdxl").attention_levels)
    flat = [names.ldm_name(m, 1, levels) for m in modules]
    assert None not in flat
    assert [names.unet_path(f or "", 1) for f in flat] == modules


@pytest.mark.parametrize(
    ("family", "name", "kohya"),
    [
        (
            "sd1",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
        ),
        (
            "sd1",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_3_self_attn_q_proj",
        ),
        (
            "sdxl",
            "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        ),
        ("sdxl", "unet.up_blocks.1.upsamplers.0.conv", "lora_unet_output_blocks_5_2_conv"),
        (
            "sdxl",
            "unet.up_blocks.0.resnets.2.conv_shortcut",
            "lora_unet_output_blocks_2_0_skip_connection",
        ),
        ("sdxl", "unet.mid_block.resnets.1.conv1", "lora_unet_middle_block_2_in_layers_2"),
        ("sdxl", "unet.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        ("sdxl", "unet.add_embedding.linear_2", "lora_unet_label_emb_0_2"),
        (
            "sdxl",
            "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
            "lora_te2_text_model_encoder_layers_31_mlp_fc2",
        ),
        (
            "sdxl",
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
            "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        ),
    ],
)
def test_names_as_the_hosts_know_them(family: str, name: str, kohya: str) -> None:
    record = stable(family)
    assert kohya_name(name, record, 2, record.attention_levels) == kohya
    assert module_name(kohya) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", "unet.down_blocks.1.attentions.0.proj_in"),
        ("lora_unet_output_blocks_8_2_conv", "unet.up_blocks.2.upsamplers.0.conv"),
        ("lora_te_encoder_layers_1_mlp_fc1", "text_encoder.text_model.encoder.layers.1.mlp.fc1"),
        ("lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("diffusion_model.middle_block.1.proj_out", "unet.mid_block.attentions.0.proj_out"),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.2.self_attn.k_proj",
            "text_encoder.text_model.encoder.layers.2.self_attn.k_proj",
        ),
        (
            "base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v",
            "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v",
        ),
        (
            "base_model.model.encoder.layers.0.mlp.fc2",
            "text_encoder.text_model.encoder.layers.0.mlp.fc2",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
    ],
)
def test_other_spellings(raw: str, name: str) -> None:
    assert module_name(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q",
        "lora_unet_down_blocks_0_upsamplers_0_conv",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_input_blocks_1_2_conv",
        "lora_te_text_model_encoder_layers_x_mlp_fc1",
        "something_else",
    ],
)
def test_what_is_no_module_has_no_name(raw: str) -> None:
    assert module_name(raw) is None
