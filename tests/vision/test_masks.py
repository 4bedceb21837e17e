"""A mask is where the words are likely, made wider and faded; CLIPSeg is asked as it wants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat

from dreambooth_core.errors import UserError
from dreambooth_core.vision.masks import Shape, load_segmenter, shown

LEFT = torch.zeros(1, 4, 4)
LEFT[:, :, :2] = 1.0
"""The left half shows it."""

SHARP = Shape(0.5, grow=0.0, feather=0.0)


def share(mask: Image.Image | None) -> float:
    assert mask is not None
    return ImageStat.Stat(mask).mean[0] / 255


def test_what_is_likely_counts() -> None:
    assert share(SHARP.mask(LEFT, (40, 20))) == 0.5
    mask = SHARP.mask(LEFT, (40, 20))
    assert mask is not None and mask.size == (40, 20)
    assert (mask.getpixel((0, 0)), mask.getpixel((39, 0))) == (255, 0)
    assert share(Shape(0.5, 0.0, 0.0, invert=True).mask(LEFT, (40, 20))) == 0.5


def test_any_of_the_words_is_enough() -> None:
    assert share(SHARP.mask(torch.cat([LEFT, LEFT.flip(2)]), (8, 8))) == 1.0


def test_it_grows_and_fades() -> None:
    wide = Shape(0.5, grow=10.0, feather=0.0).mask(LEFT, (40, 40))
    assert share(wide) == 0.6  # four of forty pixels wider, on the one side where it can
    faded = Shape(0.5, grow=0.0, feather=5.0).mask(LEFT, (40, 40))
    assert faded is not None and faded.getpixel((20, 20)) not in (0, 255)


def test_a_speck_is_nothing() -> None:
    speck = torch.zeros(1, 64, 64)
    speck[0, 0, 0] = 1.0
    assert SHARP.mask(speck, (64, 64)) is None
    assert Shape(0.5, invert=True).mask(speck, (64, 64)) is None


def test_it_is_shown_over_the_image() -> None:
    image, mask = Image.new("RGB", (20, 10), "white"), SHARP.mask(LEFT, (20, 10))
    assert mask is not None
    seen = shown(image, mask, 40)
    assert seen.size == (40, 40)
    assert seen.getpixel((5, 20)) == (255, 255, 255) and seen.getpixel((35, 20)) == (63, 63, 63)


def test_a_tiny_clipseg_looks_from_a_folder(tmp_path: Path) -> None:
    from transformers import (
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        CLIPTokenizer,
        ViTImageProcessor,
    )

    words = ["a", "dog", "a</w>", "dog</w>", "<|startoftext|>", "<|endoftext|>", "d", "o", "g"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = CLIPSegConfig(
        text_config={
            **small,
            "num_attention_heads": 2,
            "vocab_size": len(words),
            "eos_token_id": 5,
            "bos_token_id": 4,
            "pad_token_id": 5,
        },
        vision_config={**small, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    images = ViTImageProcessor(size={"height": 16, "width": 16})
    CLIPSegProcessor(images, tokenizer).save_pretrained(tmp_path)
    model = load_segmenter(str(tmp_path), torch.device("cpu"))
    image = Image.new("RGB", (20, 10), "red")
    one = model.find(image, ["dog"])
    assert one.shape == (1, 16, 16) and one.dtype == torch.float32
    assert float(one.min()) > 0 and float(one.max()) < 1
    both = model.find(image, ["dog", "a dog"])
    assert both.shape == (2, 16, 16)
    torch.testing.assert_close(both[:1], one)


def test_a_model_that_is_not_here_is_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the mask model .* is not on this machine"):
        load_segmenter(str(tmp_path / "none"), torch.device("cpu"))
