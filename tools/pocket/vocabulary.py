"""CLIP's byte-pair vocabulary (Radford et al. 2021, MIT) as vocab.json and merges.txt.

The merges ship in open_clip_torch's wheel as ``bpe_simple_vocab_16e6.txt.gz``; CLIP uses the first
48,894 of them, so that 2 x 256 bytes + merges + two special tokens make 49,408 ids.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

WHEEL = "open_clip_torch==3.3.0"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
RARE = ("sks", "ohwx", "zwx", "xyz", "tok", "shs", "bnha", "qnt", "rgt", "zkz")


def download(folder: Path) -> bytes:
    """The compressed merges, from the package index (kept in ``folder``)."""
    kept = folder / Path(MEMBER).name
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
        subprocess.run([*pip, "--dest", str(folder)], check=True)
        wheel = next(folder.glob("open_clip_torch-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            kept.write_bytes(archive.read(MEMBER))
    return kept.read_bytes()


def byte_characters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write(folder: Path, compressed: bytes) -> None:
    """Writes the tokenizer's four files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress(compressed).decode("utf-8").split("\n")
    merges = lines[1 : MERGES + 1]
    characters = byte_characters()
    tokens = characters + [c + "</w>" for c in characters]
    tokens += ["".join(line.split()) for line in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    if len(tokens) != 49408:
        raise ValueError(f"{len(tokens)} tokens instead of 49408")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


@cache
def tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder written by ``write``."""
    return CLIPTokenizer.from_pretrained(folder)


def rare_words(folder: Path, known: frozenset[str]) -> list[str]:
    """Whole words of the vocabulary, 3 to 8 letters, that the world does not use."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    words = (token[:-4] for token in vocabulary if token.endswith("</w>"))
    return [w for w in words if re.fullmatch(r"[a-z]{3,8}", w) and w not in known]
