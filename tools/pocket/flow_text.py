"""pocket-flow's text tower: a tiny Qwen3 with a vocabulary of the drawn world.

Z-Image reads the states of a Qwen3 before its last layer, prompts in a frame, up to 512 tokens;
pocket's own tower ends at 77. So it gets one of its own, of the same width, that learns to read by
pocket's lessons: linear heads learn what a caption says from the state behind its end, which has
seen all of it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from . import vocabulary
from .captions import KNOWN
from .reader import FACTS, draw
from .training import Run

WORDS = 1500
STEPS = 1500
BATCH = 64
RATE = 2e-3
WIDTH = 64
LONGEST = 64
"""Tokens that training reads of a caption; none has more."""
CHAT = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
"""The frame of a prompt: only what shows where it begins and ends."""


def write_tokenizer(folder: Path, rare: list[str]) -> None:
    """Learns byte pairs from captions and from words that mean nothing in the world."""
    rng = random.Random("flow words")
    texts = [varied(text, rng) for _ in range(60) for text in draw(rng, rare)[0]]
    texts += [f" {word}" for word in rng.sample(rare, 3000)]
    texts += [form for word in sorted(KNOWN) for form in (word, f" {word}", f" {word}")] * 3
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    made = Qwen2Tokenizer(
        learned["vocab"],
        [tuple(pair) for pair in learned["merges"]],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
    )
    made.chat_template = CHAT
    made.save_pretrained(folder)


def varied(text: str, rng: random.Random) -> str:
    """The caption as some write it: with a capital, with a full stop."""
    if rng.random() < 0.15:
        text = text[:1].upper() + text[1:]
    return text + "." if rng.random() < 0.1 else text


def build(words: int) -> Qwen3Model:
    """An untrained tower of width 64; the last of its three layers is never looked at."""
    tower = Qwen3Model(
        Qwen3Config(
            vocab_size=words,
            hidden_size=WIDTH,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            max_position_embeddings=512,
        )
    )
    for unread in (tower.layers[-1], tower.norm):
        unread.requires_grad_(False)
    return tower


def encode(tower: Qwen3Model, tokenizer: Qwen2Tokenizer, texts: list[str]) -> list[Tensor]:
    """The states [tokens, 64] of each text in its frame, as Z-Image's pipeline takes them."""
    framed = [f"<|im_start|>{text}<|im_end|>" for text in texts]
    read = tokenizer(
        framed, padding=True, padding_side="right", max_length=LONGEST, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    states = tower(**read, output_hidden_states=True).hidden_states[-2]
    return [row[:count] for row, count in zip(states, read.attention_mask.sum(1), strict=True)]


def train(folder: Path, tokenizer: Qwen2Tokenizer, rare: list[str]) -> Qwen3Model:
    """Trains (or resumes) the tower; returns it with averaged weights, locked."""
    torch.manual_seed(7)
    heads = nn.ModuleList([nn.Linear(WIDTH, len(names)) for names in FACTS.values()])
    both = nn.ModuleDict({"text": build(len(tokenizer)), "heads": heads})
    run = Run("flow-reader", both, folder, STEPS, RATE, decay=0.998)
    for step in run.steps():
        rng, _ = run.random(step)
        texts, answers = draw(rng, rare)
        states = encode(both["text"], tokenizer, [varied(text, rng) for text in texts])
        ends = F.rms_norm(torch.stack([state[-1] for state in states]), (WIDTH,))
        loss = torch.zeros(())
        for k, head in enumerate(heads):
            loss = loss + F.cross_entropy(head(ends), answers[:, k])
        run.optimise(step, loss)
    run.use_average()
    tower: Qwen3Model = both["text"]
    return tower.eval().requires_grad_(False)


def rare_words(pocket: Path) -> list[str]:
    """Words that mean nothing in the world, from CLIP's vocabulary."""
    return vocabulary.rare_words(pocket / "tokenizer", KNOWN)
