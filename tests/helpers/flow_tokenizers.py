"""Small tokenizers of the kinds that rectified-flow models bring, made here and not downloaded.

They know ``WORDS`` as whole tokens, everything else letter by letter; so a template has as many
tokens as with the real tokenizer (34 in Qwen-Image's).
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

WORDS = (
    "a photo of sks dog red car cat on the beach blue house in person painting style image "
    "system Describe the image by detailing the color shape size texture quantity text "
    "spatial relationships of the objects and background user assistant think You are an"
)
"""Each is one token. The second half is what the templates of Qwen-Image and Krea 2 say."""
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
"""Qwen3's, for messages without tools, and without its thoughts from earlier turns."""
MISTRAL_WORDS = (
    "reasons about descriptions You give structured responses focusing object attribution "
    "actions without speculation"
)
"""What Flux.2 dev's system message says besides."""
MISTRAL_SPECIAL = (
    "<s>",
    "</s>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set mark = 'SYSTEM_PROMPT' if message['role'] == 'system' else 'INST' %}"
    "{{ '[' + mark + ']' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{{ '[/' + mark + ']' }}{% endfor %}"
)
"""Mistral Small 3's, for messages without tools and images."""


def qwen() -> Qwen2Tokenizer:
    """Byte pairs with the tokens of a chat, of Qwen2, Qwen2.5-VL and Qwen3."""
    vocabulary, merges = _byte_pairs("", with_space=True)
    made = Qwen2Tokenizer(vocabulary, merges, additional_special_tokens=list(QWEN_SPECIAL[1:]))
    made.chat_template = CHAT
    return made


def mistral() -> PreTrainedTokenizerFast:
    """Byte pairs with Mistral's marks of who speaks; padded on the left."""
    vocabulary, merges = _byte_pairs("", with_space=True, more=MISTRAL_WORDS)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(MISTRAL_SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL_CHAT,
    )


def clip(pad: str = "<|endoftext|>", *, length: int = 77) -> CLIPTokenizer:
    """CLIP's byte pairs; begin and end are the last two ids, as there."""
    vocabulary, merges = _byte_pairs("</w>", with_space=False)
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(vocabulary, merges, pad_token=pad, model_max_length=length)


def t5() -> T5Tokenizer:
    """Pieces of T5: words, and letters for the rest."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [f"▁{word}" for word in _words()]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    scores += [(piece, -1.0) for piece in pieces] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(scores, extra_ids=0, model_max_length=512)


def gemma() -> GemmaTokenizer:
    """Gemma's byte pairs over text whose spaces are ``▁``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=["▁", *(chr(c) for c in range(33, 127))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"▁{word}" for word in _words()] * 2, trainer)
    vocabulary, merges = _parts(tokenizer)
    return GemmaTokenizer(vocabulary, merges, padding_side="right")


def _words() -> list[str]:
    """Every word once, in a fixed order."""
    return list(dict.fromkeys(WORDS.split()))


def _byte_pairs(
    ending: str, *, with_space: bool, more: str = ""
) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges that make one token of each word, with a space before it or not."""
    suffix: dict[str, Any] = {"end_of_word_suffix": ending} if ending else {}
    tokenizer = Tokenizer(models.BPE(**suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        special_tokens=["<|endoftext|>"] if with_space else [],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
        **suffix,
    )
    words = [*_words(), *more.split()]
    texts = [*words, *(f" {word}" for word in words), "\n\n"] if with_space else words
    tokenizer.train_from_iterator(texts * 2, trainer)
    vocabulary, merges = _parts(tokenizer)
    if ending:
        for letter in sorted(ByteLevel.alphabet()):
            vocabulary.setdefault(letter + ending, len(vocabulary))
    return vocabulary, merges


def _parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[Any]]:
    model = json.loads(tokenizer.to_str())["model"]
    return dict(model["vocab"]), [tuple(pair) for pair in model["merges"]]
