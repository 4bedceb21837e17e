"""``python -m tools.pocket.flow``: makes pocket-flow on the pocket that is shipped.

A transformer in Z-Image's shape, trained by rectified flow (Liu et al. 2022, Lipman et al. 2022)
on the same drawn world, under a locked text tower that has learned to read. Needs no weight by
noise: the flow's target asks for the image's share of it evenly at every time.

Like ``python -m tools.pocket`` it may be stopped and started again.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Tokenizer, Qwen3Model
from transformers import logging as transformers_logging

from . import flow_export, flow_text, latents
from .__main__ import ASSETS, Workshop
from .captions import caption
from .denoiser import DROPOUT
from .latents import Latents
from .training import Run
from .world import scene_number

STEPS = {"flow": 5500, "flow-shapes": 3600}
"""Of both stages; the second starts from the first's averaged weights."""
COLOURS = 2250
"""Steps after which colours and backgrounds are right, and shapes have their turn."""
BATCH = 16
RATES = {"flow": 1.5e-3, "flow-shapes": 1e-3}
SMALL = 0.1
"""Share of steps on 8x8 latents (64 px)."""
FOCUS = (0.5, 0.0, 1.0), (0.75, 0.8, 0.8)
"""Before and after: the share of times that is drawn logit-normally, about which mean and how wide.
Shapes are decided where there is more noise than image, but some image."""


def build() -> ZImageTransformer2DModel:
    """An untrained transformer in Z-Image's shape (4.5M parameters)."""
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=192,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=flow_text.WIDTH,
        axes_dims=[16, 16, 16],
        axes_lens=[1024, 64, 64],
    )
    # Its tokens of padding are made without values.
    for token in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(token, std=0.02)
    return model


def draw_times(shapes: bool, count: int, generator: torch.Generator) -> Tensor:
    """Shares of noise [count], for shapes or for colours and backgrounds."""
    part, mean, width = FOCUS[shapes]
    even = torch.rand(count, generator=generator)
    middle = (mean + width * torch.randn(count, generator=generator)).sigmoid()
    focused = torch.rand(count, generator=generator) < part
    return torch.where(focused, middle, even)


def flow_loss(
    model: ZImageTransformer2DModel,
    context: list[Tensor],
    images: Tensor,
    share: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the way from noise to images [n, 4, h, w], at shares of noise [n].

    In bf16 where the processor has it, which saves a quarter of the time.
    """
    noise = torch.randn(images.shape, generator=generator)
    mixed = torch.lerp(images, noise, share[:, None, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(list(mixed.unsqueeze(2)), 1 - share, context, return_dict=False)[0]
    return (torch.stack(found).squeeze(2).float() - (images - noise)).square().mean()


def train(
    stage: str,
    model: ZImageTransformer2DModel,
    folder: Path,
    tokenizer: Qwen2Tokenizer,
    tower: Qwen3Model,
    rare: list[str],
) -> ZImageTransformer2DModel:
    """Trains (or resumes) the transformer in this stage; returns it with averaged weights."""
    run = Run(stage, model, folder, STEPS[stage], RATES[stage], every=250)
    caches = {side: Latents(folder, side) for side in latents.COUNTS}
    for step in run.steps():
        rng, generator = run.random(step)
        cache = caches[64 if rng.random() < SMALL else 128]
        indices = [rng.randrange(len(cache)) for _ in range(BATCH)]
        texts = [_text(index, rng, rare) for index in indices]
        with torch.no_grad():
            context = flow_text.encode(tower, tokenizer, texts)
        images = cache.sample(indices, generator)
        share = draw_times(stage != "flow" or step >= COLOURS, BATCH, generator)
        run.optimise(step, flow_loss(model, context, images, share, generator))
    run.use_average()
    return model.eval()


def _text(index: int, rng: random.Random, rare: list[str]) -> str:
    if rng.random() < DROPOUT:
        return ""
    return flow_text.varied(caption(scene_number(index), rng, rare), rng)


def make(shop: Workshop) -> None:
    """All stages, then the folder of what pocket does not have."""
    pocket = shop.assets / "pocket"
    rare = flow_text.rare_words(pocket)
    words = shop.work / "flow-tokenizer"
    if not (words / "tokenizer.json").exists():
        flow_text.write_tokenizer(words, rare)
    tokenizer = AutoTokenizer.from_pretrained(words)
    tower = shop.timed("flow-reader", lambda: flow_text.train(shop.work, tokenizer, rare))
    vae = AutoencoderKL.from_pretrained(pocket / "vae", torch_dtype=torch.float32)
    vae.eval().requires_grad_(False)
    for side in latents.COUNTS:
        latents.encode(vae, shop.work, side)
    torch.manual_seed(3)
    model = build()
    for stage in STEPS:
        with_stage = partial(train, stage, model, shop.work, tokenizer, tower, rare)
        model = shop.timed(stage, with_stage)
    flow_export.write(shop.assets / "pocket-flow", words, tower, model)


def main() -> None:
    """Reads the command line and makes pocket-flow."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.flow", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"), help="kept work")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    make(Workshop(options.work, options.assets))


if __name__ == "__main__":
    main()
