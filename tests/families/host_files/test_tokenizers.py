"""Tokenizers of bases in the hosts' files: from a folder, from the program or from a file."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import flow_bases, flow_tokenizers, host_files
from helpers.host_bases import Bases, answer, options, refused
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dreambooth_core.commands.main import main
from dreambooth_core.errors import UserError
from dreambooth_core.families.host_files import language as host_language
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.formats.storage import write_tensors

SENTENCEPIECE = Path(__file__).with_name("sentencepiece.json")
"""A small model that the sentencepiece package (0.2.3) made, and the ids that it gives."""

pytestmark = pytest.mark.usefixtures("small")


def test_a_tokenizer_that_lacks_what_frames_the_prompt_is_refused(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2.5's, which ComfyUI has, is Z-Image's as it is; Klein's prompts hold more."""
    older = [token for token in flow_tokenizers.QWEN_SPECIAL if "think" not in token]
    monkeypatch.setattr(flow_tokenizers, "QWEN_SPECIAL", older)
    flow_tokenizers.qwen().save_pretrained(tmp_path)
    assert load_base(replace(options(bases.of("z_image")[1]), tokenizer=str(tmp_path)))
    said = refused(replace(options(bases.of("flux2")[1]), tokenizer=str(tmp_path)))
    assert "does not know <think>" in said


def test_inspect_says_where_a_tokenizer_is(
    bases: Bases, capsys: pytest.CaptureFixture[str]
) -> None:
    """For hosts that ask what they should name."""
    _, files = bases.of("z_image")
    told = []
    for path in (*files.texts, files.denoiser):
        assert main(["inspect", str(path), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out).get("tokenizer"))
    assert told == ["comfy/text_encoders/qwen25_tokenizer", None]


def test_clips_tokenizer_comes_with_the_program(bases: Bases) -> None:
    folder, files = bases.of("flux")
    one = replace(options(files), tokenizer=str(folder / "tokenizer_2"))
    clip, t5 = load_base(one, weights=False).tokenizers
    assert len(clip) == 49408
    assert type(t5).__name__.startswith("T5")


def test_a_tokenizers_folder_without_one_is_refused(bases: Bases, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    said = refused(replace(options(bases.of("z_image")[1]), tokenizer=str(tmp_path)))
    assert "no tokenizer in this folder" in said


def test_gemmas_tokenizer_stands_in_its_file(bases: Bases, tmp_path: Path) -> None:
    """As ComfyUI stores it; its ids are those of the sentencepiece package."""
    _, files = bases.of("lumina2")
    known = json.loads(SENTENCEPIECE.read_text(encoding="utf-8"))
    text = dict(files.tensors["text_encoder"])

    def load(model: bytes) -> list[Any]:
        text["spiece_model"] = torch.frombuffer(bytearray(model), dtype=torch.uint8)
        write_tensors(tmp_path / "gemma.safetensors", text)
        named = [str(tmp_path / "gemma.safetensors")]
        asked = replace(options(files), text_encoders=named, tokenizer=None)
        return load_base(asked, weights=False).tokenizers

    tokenizer = load(base64.b64decode(known["model"]))[0]
    assert {line: tokenizer(line).input_ids for line in known["ids"]} == known["ids"]
    for broken in (b"\x0a\xff", bytes(range(256))):
        with pytest.raises(UserError, match="stored in this file is"):
            load(broken)


def tekken(tokenizer: Any) -> bytes:
    """A byte-pair tokenizer in Mistral's own form: special tokens, then pairs by their rank."""
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special = flow_tokenizers.MISTRAL_SPECIAL
    pairs = sorted((i, text) for text, i in tokenizer.get_vocab().items() if text not in special)
    words = [bytes(letters[letter] for letter in text) for _, text in pairs]
    words.sort(key=lambda word: len(word) > 1)  # single bytes come first there
    return json.dumps(
        {
            "config": {
                "pattern": r" ?[^\s]+|\s+",
                "default_vocab_size": len(special) + len(words),
                "default_num_special_tokens": len(special),
            },
            "vocab": [
                {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
                for rank, word in enumerate(words)
            ],
            "special_tokens": [
                {"rank": rank, "token_str": text, "is_control": True}
                for rank, text in enumerate(special)
            ],
        }
    ).encode()


@pytest.mark.parametrize("cut", [False, True])
def test_flux2_dev_reads_with_the_hosts_mistral(
    tmp_path: Path, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose file holds its tokenizer and no image tower, and ComfyUI's has 30 layers without the
    norm: prompts are encoded as by the folder's Mistral."""
    monkeypatch.setattr(host_language, "LLAMA_HEAD", 8)
    folder = flow_bases.flux2_dev(tmp_path / "folder", head=8)
    family = FAMILIES["flux2_dev"]
    files = host_files.write_split(family, folder, tmp_path / "files")
    theirs = load_base(BaseOptions(model=str(folder)))
    text = files.tensors["text_encoder"]
    if cut:
        after = tuple(name for name in text if ".layers.30." in name or name == "model.norm.weight")
        assert len(after) == 10
        text = host_files.without(text, after)
    model = tekken(theirs.tokenizers[0])
    text["tekken_model"] = torch.frombuffer(bytearray(model), dtype=torch.uint8)
    write_tensors(files.texts[0], text)
    ours = load_base(replace(options(files), tokenizer=None), weights=True)
    assert ours.family is family and ours.is_told_guidance
    # The words have other numbers in this form, as a Mistral of the same words would have.
    places = {i: word for word, i in ours.tokenizers[0].get_vocab().items()}
    old = theirs.tokenizers[0].get_vocab()
    order = [old[places[i]] for i in range(len(places))]
    embedding = ours.text_encoders[0].get_input_embeddings()
    embedding.weight.data = embedding.weight.data[order]
    assert torch.equal(answer(ours), answer(theirs))
