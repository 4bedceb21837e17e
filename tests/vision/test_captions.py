"""What a model says becomes a caption; each kind of model is asked in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_core.errors import UserError
from dreambooth_core.vision.captions import FLORENCE_TASK, Describer, load_captioner
from dreambooth_core.vision.wording import Wording

CPU = torch.device("cpu")
IMAGE = Image.new("RGB", (20, 10), "red")


@pytest.mark.parametrize(
    ("wording", "said", "caption"),
    [
        (Wording(), "a dog on grass", "a dog on grass"),
        (Wording(), "The image shows a dog, on grass.\n", "a dog, on grass"),
        (
            Wording("a photo of sks dog", "photo", "best", ("dog", "red scarf")),
            "there is a dog with a Red Scarf, dogs behind, on grass",
            "photo, a photo of sks dog, a with a, dogs behind, on grass, best",
        ),
        (Wording("sks", never=("everything",)), "everything", "sks"),
    ],
)
def test_words_are_put_together(wording: Wording, said: str, caption: str) -> None:
    assert wording.caption(said) == caption


class Stub:
    """A model and its processor in one, whose answers are known."""

    dtype = torch.float32

    def __init__(self, kind: str) -> None:
        self.config = type("Config", (), {"model_type": kind})
        self.asked: list[Any] = []

    def to(self, device: Any) -> Stub:
        return self

    def eval(self) -> Stub:
        return self

    def __call__(self, **given: Any) -> dict[str, torch.Tensor]:
        self.asked.append(given)
        images = given["images"]
        return {"pixel_values": torch.zeros(len(images) if isinstance(images, list) else 1, 2)}

    def apply_chat_template(self, messages: Any, **given: Any) -> dict[str, torch.Tensor]:
        self.asked.append(messages)
        return {"input_ids": torch.zeros(1, 3, dtype=torch.long)}

    def generate(self, **given: Any) -> torch.Tensor:
        assert given["do_sample"] is False and given["max_new_tokens"] == 9
        rows = next(v for v in given.values() if isinstance(v, torch.Tensor)).shape[0]
        return torch.arange(5).repeat(rows, 1)

    def batch_decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [f"{row.tolist()} {skip_special_tokens}" for row in tokens]

    def post_process_generation(self, text: str, task: str, image_size: Any) -> dict[str, str]:
        return {task: f"{text} {image_size}"}


def test_each_kind_is_asked_in_its_own_way() -> None:
    blip = Stub("blip")
    assert Describer(blip, blip, CPU, 9).describe([IMAGE, IMAGE]) == ["[0, 1, 2, 3, 4] True"] * 2
    florence = Stub("florence2")
    assert Describer(florence, florence, CPU, 9).describe([IMAGE]) == [
        "[0, 1, 2, 3, 4] False (20, 10)"
    ]
    assert florence.asked[0]["text"] == FLORENCE_TASK
    other = Stub("qwen3_vl")
    # The question's three tokens are not part of the answer.
    assert Describer(other, other, CPU, 9).describe([IMAGE]) == ["[3, 4] True"]
    assert other.asked[0][0]["content"][0]["image"] is IMAGE


def test_a_tiny_blip_describes_from_a_folder(tmp_path: Path) -> None:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "ball"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **small,
        "vocab_size": len(words),
        "encoder_hidden_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {**small, "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, tokenizer).save_pretrained(tmp_path)
    model = load_captioner(str(tmp_path), CPU, longest=5)
    found = model.describe([IMAGE, IMAGE])
    assert len(found) == 2 and found[0] == found[1]
    assert set(found[0].split()) <= {"[DEC]", "a", "red", "ball"}


def test_a_model_that_is_not_here_is_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not on this machine") as refused:
        load_captioner(str(tmp_path / "none"), CPU, longest=5)
    assert "--download" in str(refused.value.do)
