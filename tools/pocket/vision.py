"""CLIP's vision tower and projections: what measures pictures against captions and each other.

Two outputs, for two questions:

- ``image_embeds`` (``visual_projection``; compare with ``text_projection`` of the text tower's
  pooled state): does the picture show what the caption says? CLIP's symmetrical contrastive loss
  (Radford et al. 2021), text tower locked (LiT, Zhai et al. 2022).
- ``pooler_output`` (L2-normalised): do two pictures show the same individual, whatever the
  background and pose? Supervised contrastive loss (SupCon, Khosla et al. 2020): several pictures
  of one drawn ``Thing`` are positives; batches come in families of one shape and about one colour,
  so that it must look at arms, eyes, mouths and second colours.

A caption needs the background and an individual must not have it, so the last third of the pooled
vector starts with a small gain: there the caption's facts live at little length, and the visual
projection starts with the inverse gain.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from .autoencoder import shrink, to_tensor
from .captions import caption
from .painting import paint
from .training import Run
from .world import (
    LAYOUTS,
    MOUTHS,
    SHAPES,
    Scene,
    Thing,
    any_rgb,
    jitter,
    near,
    place,
    random_thing,
    resembles_subject,
)

STEPS = 1300
RATE = 1.5e-3
SIDE = 64
FAMILIES, SIBLINGS, VIEWS = 6, 5, 2
DECODED = 12
TEMPERATURE = 0.1
IDENTITY = 64
QUIET_GAIN = 0.15


class Scorer(nn.Module):
    """Vision tower with its projection, the text's projection and CLIP's temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=SIDE,
                patch_size=8,
                projection_dim=64,
                hidden_act="quick_gelu",
            )
        )
        self.text_projection = nn.Linear(64, 64, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        norm = next(m for n, m in self.vision.named_modules() if n.endswith("post_layernorm"))
        with torch.no_grad():
            norm.weight[IDENTITY:] = QUIET_GAIN
            self.vision.visual_projection.weight[:, IDENTITY:] /= QUIET_GAIN

    def image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [n, 3, 64, 64] in -1..1 to caption space [n, 64] and identity [n, 96]."""
        output = self.vision(pixel_values=pixels)
        pooled = pooled_state(self.vision, output.last_hidden_state)
        return F.normalize(output.image_embeds, dim=-1), F.normalize(pooled, dim=-1)

    def text(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled text states [n, 64] to caption space [n, 64]."""
        return F.normalize(self.text_projection(pooled), dim=-1)


def pooled_state(vision: CLIPVisionModelWithProjection, hidden: torch.Tensor) -> torch.Tensor:
    """The pooled output [n, 96], which the model with projection does not return."""
    inner = getattr(vision, "vision_model", vision)
    return inner.post_layernorm(hidden[:, 0])


def sibling(thing: Thing, rng: random.Random) -> Thing:
    """Another individual of the same shape and about the same colour."""
    while True:
        other = random_thing(rng, featured=0.85, shape=thing.shape)
        rgb = jitter(thing.rgb, rng, 14)
        second = other.second
        if second is not None and near(second, rgb, 110):
            continue
        other = replace(other, rgb=rgb, colour=thing.colour)
        if not resembles_subject(other):
            return other


def altered(thing: Thing, rng: random.Random) -> Thing:
    """The same individual but for one thing: the hardest negative."""
    while True:
        what = rng.choice(("eyes", "mouth", "second", "layout", "arms", "rgb"))
        other = thing
        if what == "eyes":
            other = replace(thing, eyes=rng.choice((0, 1, 2, 3)))
        elif what == "mouth":
            other = replace(thing, mouth=rng.choice((None, *MOUTHS)))
        elif what == "second":
            layout = thing.layout or rng.choice(LAYOUTS)
            other = replace(thing, second=any_rgb(rng), second_name=None, layout=layout)
        elif what == "layout" and thing.second:
            other = replace(thing, layout=rng.choice(LAYOUTS))
        elif what == "arms" and thing.shape == "star":
            other = replace(thing, arms=rng.randint(4, 8), rounded=rng.random() < 0.5)
        elif what == "rgb":
            other = replace(thing, rgb=any_rgb(rng), colour=None)
        if other != thing and not resembles_subject(other):
            return other


def family(rng: random.Random) -> list[Thing]:
    """Individuals that are easily confused."""
    shape = rng.choice((*SHAPES, "star", "star", "star", "star"))
    first = random_thing(rng, featured=0.8, shape=shape)
    return [first, altered(first, rng), altered(first, rng)] + [
        sibling(first, rng) for _ in range(SIBLINGS - 3)
    ]


def draw_batch(rng: random.Random) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
    """Scenes, pictures [n, 3, 64, 64] and individuals' numbers [n]."""
    things = [thing for _ in range(FAMILIES) for thing in family(rng)]
    scenes = [place(thing, rng) for thing in things for _ in range(VIEWS)]
    labels = torch.arange(len(things)).repeat_interleave(VIEWS)
    return scenes, to_tensor([shrink(paint(scene)) for scene in scenes]), labels


def same_individual_loss(identity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """SupCon over unit vectors [n, d] with labels [n]."""
    own = torch.eye(len(labels), dtype=torch.bool)
    scores = (identity @ identity.T / TEMPERATURE).masked_fill(own, -1e4)
    positive = (labels[:, None] == labels[None, :]) & ~own
    logs = scores.log_softmax(dim=1)
    return -(logs * positive).sum(1).div(positive.sum(1)).mean()


def caption_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor,
                 captions: list[str]) -> torch.Tensor:  # fmt: skip
    """CLIP's symmetrical loss; equal captions share their probability."""
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale.exp().clamp(max=100) * images @ texts.T
    forward = -(target * logits.log_softmax(1)).sum(1).mean()
    return (forward - (target * logits.T.log_softmax(1)).sum(1).mean()) / 2


@torch.no_grad()
def decoded(model: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as the autoencoder gives them back: [n, 3, h, w]."""
    return model.decode(model.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


def train(
    folder: Path, tokenizer: CLIPTokenizer, text: CLIPTextModel, autoencoder: AutoencoderKL
) -> Scorer:
    """Trains (or resumes) the scorer; returns it with averaged weights."""
    torch.manual_seed(4)
    scorer = Scorer()
    run = Run("vision", scorer, folder, STEPS, RATE, weight_decay=0.05, every=250)
    text.eval()
    for step in run.steps():
        rng, generator = run.random(step)
        scenes, pictures, labels = draw_batch(rng)
        some = torch.randperm(len(scenes), generator=generator)[:DECODED]
        pictures[some] = decoded(autoencoder, pictures[some])
        captions = [caption(scene, rng) for scene in scenes]
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        with torch.no_grad():
            pooled = text(**tokens).pooler_output
        images, identity = scorer.image(pictures)
        loss = same_individual_loss(identity, labels)
        loss = loss + caption_loss(images, scorer.text(pooled), scorer.logit_scale, captions)
        run.optimise(step, loss)
    run.use_average()
    return scorer
