"""The trainer's first losses against a computation that shares none of its code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from helpers.runs import PRIOR, config_for, folder_for, losses, train, training_of, undecorated
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel

from dreambooth_core.data.plan import CLASS, Slot
from dreambooth_core.errors import TrainingFailed
from dreambooth_core.families.clip_tokenizers import load_tokenizers
from dreambooth_core.randomness import generator, uniform
from dreambooth_core.trainer.run import run

PROMPTS = {"instance": "a photo of sks ball", "class": "a photo of a ball"}


class Direct:
    """Epsilon loss of a base, straight from the models and the paper."""

    def __init__(self, base: Path) -> None:
        self.unet = UNet2DConditionModel.from_pretrained(base / "unet")
        self.vae = AutoencoderKL.from_pretrained(base / "vae")
        self.text = CLIPTextModel.from_pretrained(base / "text_encoder").eval()
        self.tokenizer = load_tokenizers("sd1")[0]
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        )

    @torch.no_grad()
    def loss(self, picture: Path, prompt: str, seed: int, step: int, slot: int) -> Tensor:
        image = Image.open(picture).convert("RGB")
        # 80 x 64 pixels to the middle 64 x 64, or the whole of a class image.
        left = (image.width - 64) // 2
        pixels = np.asarray(image.crop((left, 0, left + 64, 64)), dtype=np.float32)
        inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        posterior = self.vae.encode(inputs).latent_dist
        shape = posterior.mean.shape[1:]
        drawn = torch.randn(shape, generator=generator("latent", seed, step, slot))
        latents = (posterior.mean + posterior.std * drawn) * self.vae.config.scaling_factor
        key = ("train", seed, step, slot)
        noise = torch.randn(shape, generator=generator(*key, "noise"))[None]
        t = torch.tensor([int(uniform(*key, "timestep") * 1000)])
        noisy = self.scheduler.add_noise(latents, noise, t)
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        answer = self.unet(noisy, t, self.text(ids).last_hidden_state).sample
        return (answer - noise).square().mean()


@pytest.mark.parametrize(("prior", "weight"), [(False, 1.0), (True, 0.3)])
def test_the_losses_equal_a_direct_computation(
    base: Path, pictures: Path, tmp_path: Path, prior: bool, weight: float
) -> None:
    changes = {**PRIOR, "prior__loss_weight": weight} if prior else {}
    config = config_for(
        base, pictures, tmp_path, optim__learning_rate=0, run__seed=7, run__steps=3, **changes
    )
    folder = folder_for(config)
    # With a learning rate of 0 every step meets the base; the proof rightly refuses the result.
    with pytest.raises(TrainingFailed, match="equals its base"), undecorated():
        run(folder)
    training = training_of(config, folder)
    direct = Direct(base)

    def loss_of(slot: Slot, step: int) -> Tensor:
        path = training.items.image(slot).path
        return direct.loss(path, PROMPTS[slot.kind], 7, step, slot.number)

    found = losses(folder)
    for step in range(3):
        slots = training.plan.slots(step)
        own = torch.stack([loss_of(s, step) for s in slots if s.kind != CLASS]).mean()
        expected = own
        if prior:
            of_class = torch.stack([loss_of(s, step) for s in slots if s.kind == CLASS]).mean()
            expected = own + weight * of_class
            events = [e for e in folder.events if e.get("stage") == "train"]
            event = next(e for e in events if e["step"] == step + 1)
            share = float(weight * of_class / expected)
            assert event["prior_share"] == pytest.approx(share, rel=1e-4)
        assert found[step + 1] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(found.values())) == 3


def test_noise_and_latents_do_not_depend_on_how_a_batch_is_split(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    split = {"run__batch_size": 1, "run__gradient_accumulation_steps": 3}
    runs = []
    for name, changes in {"whole": {"run__batch_size": 3}, "split": split}.items():
        folder = train(
            config_for(base, pictures, tmp_path, run__name=name, run__steps=3, **changes)
        )
        runs.append(losses(folder))
    assert list(runs[0].values()) == pytest.approx(list(runs[1].values()), rel=1e-5)
