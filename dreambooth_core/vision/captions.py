"""Models that say what an image shows, by transformers: BLIP, Florence-2, and such as are asked;
and taggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from dreambooth_core.vision.pretrained import Pretrained, placed
from dreambooth_core.vision.taggers import Tagger, Thresholds, is_tagger, load_tagger

QUESTION = "Describe this image in one sentence for someone who cannot see it."
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"

MODELS = {
    "blip": Pretrained("Salesforce/blip-image-captioning-base", "990 MB"),
    "blip-large": Pretrained("Salesforce/blip-image-captioning-large", "1.9 GB"),
    "florence-2": Pretrained("florence-community/Florence-2-base", "about 0.5 GB"),
    "florence-2-large": Pretrained("florence-community/Florence-2-large", "about 1.6 GB"),
}


class Describer:
    """A model and its processor, asked as its kind wants to be.

    Args:
        model: its ``config.model_type`` tells how it is asked.
        longest: tokens of a description.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device, longest: int) -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device
        self.longest = longest

    @torch.no_grad()
    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """One text for each image, RGB. The same each time: no word is drawn."""
        kind = str(self.model.config.model_type)
        if kind == "florence2":
            return [self._florence(image) for image in images]
        if kind.startswith(("blip", "git")):
            inputs = self.processor(images=list(images), return_tensors="pt")
            return self._decoded(self._generate(inputs))
        return [self._asked(image) for image in images]

    def _florence(self, image: Image.Image) -> str:
        inputs = self.processor(text=FLORENCE_TASK, images=image, return_tensors="pt")
        (text,) = self.processor.batch_decode(self._generate(inputs), skip_special_tokens=False)
        size = (image.width, image.height)
        found = self.processor.post_process_generation(text, task=FLORENCE_TASK, image_size=size)
        return str(found[FLORENCE_TASK])

    def _asked(self, image: Image.Image) -> str:
        content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        answered = self._generate(inputs)[:, inputs["input_ids"].shape[1] :]
        return self._decoded(answered)[0]

    def _generate(self, inputs: Any) -> torch.Tensor:
        there = placed(inputs, self.model, self.device)
        made: torch.Tensor = self.model.generate(
            **there, max_new_tokens=self.longest, do_sample=False
        )
        return made

    def _decoded(self, tokens: torch.Tensor) -> list[str]:
        texts: list[str] = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return texts


def load_captioner(
    name: str,
    device: torch.device,
    *,
    longest: int,
    thresholds: Thresholds | None = None,
    download: bool = False,
) -> Describer | Tagger:
    """A captioner by its short name, a hub id, or a folder.

    Args:
        longest: tokens of a description; taggers have none.
        thresholds: of taggers.

    Raises:
        UserError: it is not on this machine and may not be fetched, cannot be fetched, or is no
            model that describes images.
    """
    if is_tagger(name):
        return load_tagger(name, device, thresholds or Thresholds(), download=download)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kinds, instead = (AutoProcessor, AutoModelForImageTextToText), "blip or florence-2"
    processor, model = (MODELS.get(name) or Pretrained(name)).load_both(
        kinds, device, "caption model", instead=instead, download=download
    )
    return Describer(model, processor, device, longest)
