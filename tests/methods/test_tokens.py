"""Textual inversion and pivotal tuning: only the token's rows, files that hosts load, resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers.families import reduced_base
from helpers.runs import config_for, train
from helpers.tiny import tiny_text_encoder

from dreambooth_core.commands import main
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.families.text import tokenise
from dreambooth_core.families.tokens import add_token, embeddings_of
from dreambooth_core.formats.embeddings import read_embedding, write_embedding
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import read_receipt
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.tokens import learn_token


def test_a_word_becomes_its_vectors(base: Path) -> None:
    parts = load_base(BaseOptions(model=str(base)))
    rows = torch.randn(3, 32)
    plain = parts.family.encode(parts, ["a ball"]).embeds
    add_token(parts, "Sks", [rows])
    ids = tokenise(
        parts.tokenizers[0], ["a SKS ball, asks"], max_chunks=1, expansions=parts.expansions
    )
    (ball,) = parts.tokenizers[0]("ball", add_special_tokens=False).input_ids
    assert ids[0, 0, :7].tolist() == [49406, 320, -1, -2, -3, ball, 267]
    table = embeddings_of(parts.text_encoders[0]).token_embedding
    found = table(ids[0])
    assert torch.equal(found[0, 2:5], rows)
    assert torch.equal(found[0, 1], table.weight[320])
    assert torch.equal(parts.family.encode(parts, ["a ball"]).embeds, plain)


def test_a_learned_token_does_not_move_the_end_of_a_text(tmp_path: Path) -> None:
    """SDXL's second encoder pools where the largest id is."""
    parts = load_base(BaseOptions(model=str(reduced_base("sdxl", tmp_path / "xl"))))
    tables = [embeddings_of(encoder).token_embedding for encoder in parts.text_encoders]
    rows = [table.weight[[320]] for table in tables]
    expected = parts.family.encode(parts, ["a ball"])
    add_token(parts, "sks", rows)
    actual = parts.family.encode(parts, ["sks ball"])
    assert torch.equal(actual.embeds, expected.embeds)
    assert actual.pooled is not None and expected.pooled is not None
    assert torch.equal(actual.pooled, expected.pooled)


@pytest.mark.parametrize("word", ["", "two words", "ball"])
def test_words_that_cannot_be_learned(base: Path, word: str) -> None:
    parts = load_base(BaseOptions(model=str(base)))
    with pytest.raises(UserError, match="word"):
        add_token(parts, word, [torch.zeros(1, 32)])


def test_two_words_live_side_by_side(base: Path) -> None:
    parts = load_base(BaseOptions(model=str(base)))
    first, second = torch.randn(2, 32), torch.randn(1, 32)
    add_token(parts, "aaa1", [first])
    add_token(parts, "bbb1", [second])
    ids = tokenise(parts.tokenizers[0], ["bbb1 aaa1"], max_chunks=1, expansions=parts.expansions)
    found = embeddings_of(parts.text_encoders[0]).token_embedding(ids[0])
    assert torch.equal(found[0, 1:4], torch.cat([second, first]))


def test_rows_start_from_the_starting_word(base: Path) -> None:
    parts = load_base(BaseOptions(model=str(base)))
    options = MethodOptions(kind="textual_inversion", initializer_token="ball", num_vectors=2)
    (table,) = learn_token(options, parts, 0)
    word = parts.tokenizers[0]("ball", add_special_tokens=False).input_ids[0]
    assert torch.equal(table.rows[0], table.weight[word])
    assert torch.equal(table.rows[1], table.weight[word])
    assert table.rows.requires_grad and not table.weight.requires_grad


def test_random_rows_depend_on_the_seed(base: Path) -> None:
    options = MethodOptions(kind="textual_inversion")
    rows = [
        learn_token(options, load_base(BaseOptions(model=str(base))), seed)[0].rows
        for seed in (0, 0, 1)
    ]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_the_file_is_what_both_hosts_read(tmp_path: Path) -> None:
    """SD1/SD2: ``emb_params``; SDXL: ``clip_l`` and ``clip_g``."""
    one = write_embedding(tmp_path / "sks.safetensors", {"emb_params": torch.ones(2, 768)}, {})
    assert list(read_tensors(one)) == ["emb_params"]
    assert identify(one).kind == "embedding"
    found = read_embedding(one)
    assert found.word == "sks" and found.rows[0].shape == (2, 768)
    pair = {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}
    two = write_embedding(tmp_path / "xl.safetensors", pair, {})
    assert identify(two).family == "sdxl"
    assert [r.shape[1] for r in read_embedding(two).rows] == [768, 1280]


def test_files_of_others_are_read(tmp_path: Path) -> None:
    webui = tmp_path / "webui.pt"
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}, "name": "x"}, webui)
    assert read_embedding(webui).rows[0].shape == (2, 768)
    diffusers = tmp_path / "learned_embeds.bin"
    torch.save({"<cat>": torch.ones(768)}, diffusers)
    assert read_embedding(diffusers).rows[0].shape == (1, 768)


@pytest.mark.parametrize("kind", ["textual_inversion", "pivotal"])
def test_result_files_and_rate(base: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {
        "method__kind": kind,
        "method__num_vectors": 2,
        "method__initializer_token": "ball",
        "optim__embedding_lr": 0.25,
        "save__every_steps": 1,
        "run__steps": 2,
    }
    folder = train(config_for(base, pictures, tmp_path, **changes))
    result = read_receipt(folder)["result"]
    assert result["token"] == "sks" and result["embedding"] == "sks.safetensors"
    assert (folder.path / "sks-000001.safetensors").is_file()
    (rows,) = read_embedding(folder.path / "sks.safetensors").rows
    assert rows.shape == (2, 32)
    parts = load_base(BaseOptions(model=str(base)))
    word = parts.tokenizers[0]("ball", add_special_tokens=False).input_ids[0]
    start = embeddings_of(parts.text_encoders[0]).token_embedding.weight[word]
    # AdamW's first steps are about as long as the learning rate: 2 x 0.25 at most, no decay.
    moved = (rows - start).abs().max()
    assert 0.25 < float(moved) < 0.51
    assert (result["file"] == "sks.safetensors") == (kind == "textual_inversion")


def test_a_token_that_no_caption_has_is_refused(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"method__kind": "textual_inversion", "method__placeholder_token": "xyzzy"}
    with pytest.raises(UserError, match="no caption has the token 'xyzzy'"):
        train(config_for(base, pictures, tmp_path, **changes))


def test_the_token_is_the_word_of_the_captions_and_of_the_file(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    changes = {
        "method__kind": "textual_inversion",
        "method__placeholder_token": "ball",
        "run__steps": 1,
    }
    with pytest.raises(UserError, match="word"):
        train(config_for(base, pictures, tmp_path, **changes))
    changes["method__placeholder_token"] = "zwx"
    config = config_for(base, pictures, tmp_path, **changes)
    config.concepts[0].instance_prompt = "a photo of zwx ball"
    folder = train(config)
    assert read_receipt(folder)["result"]["token"] == "zwx"
    assert [path.name for path in folder.path.glob("*.safetensors")] == ["zwx.safetensors"]


def test_samples_use_the_embedding(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"method__kind": "textual_inversion", "optim__embedding_lr": 0.5, "run__steps": 2}
    folder = train(config_for(base, pictures, tmp_path, **changes))
    file = str(folder.path / "sks.safetensors")
    common = ["--steps", "2", "--guidance", "3", "--width", "64", "--height", "64"]
    images = []
    for name, more in {
        "none": ["--base", str(base)],
        "file": ["--base", str(base), "--embedding", file],
        "run": ["--run", str(folder.path)],
    }.items():
        out = tmp_path / name
        assert main.main(["sample", "a photo of sks ball", *more, *common, "--out", str(out)]) == 0
        images.append(next(out.glob("*.png")).read_bytes())
    assert images[1] == images[2] != images[0]


def test_a_token_is_learned_without_data_where_only_sizes_count() -> None:
    encoder = tiny_text_encoder().to("meta")
    parts = cast(Components, SimpleNamespace(tokenizers=[], text_encoders=[encoder], expansions={}))
    (table,) = learn_token(MethodOptions(kind="textual_inversion", num_vectors=4), parts, 0)
    assert table.rows.is_meta and table.rows.shape == (4, 32)
