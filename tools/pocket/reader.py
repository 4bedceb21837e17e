"""Teaches the text tower to read: what does the caption say is in the picture?

CLIP's text tower comes to Stable Diffusion able to read; one that learns together with the UNet
hardly tells shapes apart (they were 0.7% of the variance of the states that the UNet looks at,
backgrounds 97%, since a background is worth so much more to the loss). So linear heads first learn
the scene's facts from the pooled state and from the padding behind it, each fact with an equal say;
then the tower is locked, as CLIP's is.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import caption, features
from .training import Run
from .world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Scene, random_scene

STEPS = 1500
BATCH = 64
RATE = 2e-3
LENGTH = 32

FACTS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": ("", *COLOURS),
    "pattern": ("", *PATTERNS),
    "background": ("", *BACKGROUNDS),
    "eyes": ("", "one eye", "two eyes", "three eyes"),
    "mouth": ("", "a smile", "a frown", "an open mouth"),
    "arms": ("", "four arms", "six arms", "seven arms", "eight arms"),
    "round": ("", "round arms"),
    "tips": ("", *(f"{colour} tips" for colour in COLOURS)),
    "half": ("", *(f"a {colour} half" for colour in COLOURS)),
    "centre": ("", *(f"a {colour} centre" for colour in COLOURS)),
    "two": ("", "two-coloured"),
}


def build() -> CLIPTextModel:
    """An untrained CLIP text tower of width 64, two layers (3.3M parameters)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=64,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def said(text: str, scene: Scene) -> list[int]:
    """For each fact, the number of what the caption says, 0 for nothing."""
    head = text.split(f" {scene.thing.shape}")[0].split()
    tail = text.partition(" with ")[2].partition(" on a ")[0].split(" and ")
    spoken = {
        "shape": scene.thing.shape,
        "colour": scene.thing.colour if scene.thing.colour in head else "",
        "pattern": scene.thing.pattern if scene.thing.pattern in head else "",
        "background": scene.background if text.endswith(" background") else "",
        "two": "two-coloured" if "two-coloured" in head else "",
    }
    answers = []
    for fact, names in FACTS.items():
        pieces = [piece for piece in tail if piece in names and piece in features(scene.thing)]
        answers.append(names.index(spoken.get(fact) or (pieces[0] if pieces else names[0])))
    return answers


def train(folder: Path, tokenizer: CLIPTokenizer, rare: list[str]) -> CLIPTextModel:
    """Trains (or resumes) the text tower; returns it with averaged weights, locked."""
    torch.manual_seed(7)
    heads = nn.ModuleList([nn.Linear(64, len(names)) for names in FACTS.values()])
    both = nn.ModuleDict({"text": build(), "heads": heads})
    run = Run("reader", both, folder, STEPS, RATE, decay=0.998)
    for step in run.steps():
        rng, _ = run.random(step)
        texts, answers = draw(rng, rare)
        tokens = tokenizer(
            texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        states = both["text"](tokens.input_ids)
        loss = torch.zeros(())
        for state in (states.pooler_output, states.last_hidden_state[:, rng.randrange(-8, 0)]):
            for k, head in enumerate(heads):
                loss = loss + F.cross_entropy(head(state), answers[:, k])
        run.optimise(step, loss)
    run.use_average()
    text: CLIPTextModel = both["text"]
    return text.eval().requires_grad_(False)


def draw(rng: random.Random, rare: list[str]) -> tuple[list[str], torch.Tensor]:
    """Captions and what each says [batch, facts]."""
    scenes = [random_scene(rng, featured=0.4) for _ in range(BATCH)]
    texts = [caption(scene, rng, rare) for scene in scenes]
    answers = [said(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    return texts, torch.tensor(answers)
