"""Factors of blocks and schedules: how they are written, and what of a file they are for."""

from __future__ import annotations

import pytest

from comfy_nodes.blocks import LISTS, PRESETS, by_factor, names_of, read_factors, read_schedule
from dreambooth_core.errors import UserError

ATTENTION = "attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight"


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (f"lora_unet_down_blocks_1_{ATTENTION}", {"IN04", "IN", "down_blocks.1", "down_blocks"}),
        (f"lora_unet_mid_block_{ATTENTION}", {"MID", "mid_block", "mid_block.attentions.0"}),
        (f"lora_unet_up_blocks_2_{ATTENTION}", {"OUT06", "OUT", "up_blocks.2"}),
        ("lora_unet_up_blocks_0_upsamplers_0_conv.alpha", {"OUT02", "OUT", "up_blocks.0"}),
        (
            "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k.alpha",
            {"IN08", "IN", "down_blocks.2"},
        ),
        ("lora_unet_double_blocks_3_img_attn_proj.alpha", {"double_blocks.3", "double_blocks"}),
        ("diffusion_model.layers.12.attention.to_q.lora_A.weight", {"layers.12", "layers"}),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", {"text_encoder", "BASE"}),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", {"text_encoder_2", "BASE"}),
    ],
)
def test_what_a_block_is_called(key: str, names: set[str]) -> None:
    assert names <= set(names_of(key))


def test_lists_are_those_of_lora_block_weight() -> None:
    """17: the attention of Stable Diffusion 1; 12: of SDXL; 26 and 20: all their blocks."""
    assert all(len(names) == count for count, names in LISTS.items())
    numbers = ",".join(map(str, range(17)))
    found = read_factors("all", numbers, "here")
    told = {"BASE": 0, "IN01": 1, "IN08": 6, "MID": 7, "OUT03": 8, "OUT11": 16}
    assert told.items() <= found.items()
    found = read_factors("all", "1,0,0,0,0,1,.5,.5,.5,0,0,0", "here")
    assert (found["BASE"], found["IN04"], found["MID"], found["OUT00"]) == (1, 0, 1, 0.5)


def test_the_most_specific_name_counts() -> None:
    keys = [f"lora_unet_{place}_{ATTENTION}" for place in ("down_blocks_1", "up_blocks_1")]
    keys.append(f"lora_unet_up_blocks_2_{ATTENTION}")
    down, up, last = keys
    text = "unet.up_blocks.1=0.5\nOUT06 = 0.3, mid = 2"
    assert by_factor(keys, read_factors("OUT only", text, "w"), "f") == {
        0.0: {down},
        0.5: {up},
        0.3: {last},
    }
    assert by_factor(keys, {}, "f") == {1.0: set(keys)}
    assert set(by_factor(keys, PRESETS["without OUT"], "f")) == {1.0, 0.0}


def test_a_block_that_is_not_there_is_named() -> None:
    keys = ["lora_unet_double_blocks_3_img_attn_proj.alpha"]
    with pytest.raises(UserError, match=r"no block IN. It changes double_blocks.3"):
        by_factor(keys, PRESETS["IN only"], "f")
    with pytest.raises(UserError, match=r"no block single_blocks"):
        by_factor(keys, {"double_blocks": 1.0, "single_blocks": 0.0}, "f")


@pytest.mark.parametrize("text", ["1,2,3", "up_blocks.1", "up_blocks.1=", "MID=nan", "MID=9999"])
def test_a_wrong_factor_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_factors("all", text, "Apply Adapter, Blocks")
    assert caught.value.where == "Apply Adapter, Blocks" and caught.value.do


def test_schedules() -> None:
    assert read_schedule("", "w") == []
    assert read_schedule("0=0, 0.3=1; 0.8 = 0.5", "w") == [(0, 0), (0.3, 1), (0.8, 0.5)]
    assert read_schedule("0.8=0", "w") == [(0, 1), (0.8, 0)]
    for wrong in ("1.5=1", "0.5", "x=1"):
        with pytest.raises(UserError):
            read_schedule(wrong, "w")
