"""CLIP tokenizers from the package's own vocabulary."""

from __future__ import annotations

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.families import clip_tokenizers as tokenizers
from dreambooth_core.families.clip_tokenizers import (
    ASSETS,
    END,
    ZERO,
    check_tokenizer,
    load_tokenizers,
    tokenizer_files,
)


def ids(tokenizer, text):
    return tokenizer(text, padding="max_length", max_length=10, truncation=True).input_ids


def test_known_ids():
    (tokenizer,) = load_tokenizers("sd1")
    assert ids(tokenizer, "a photo of a dog") == [
        49406, 320, 1125, 539, 320, 1929, 49407, 49407, 49407, 49407,
    ]  # fmt: skip
    assert tokenizer.model_max_length == 77


def test_openclip_pads_with_zero_and_keeps_exclamation_marks():
    (sd2,) = load_tokenizers("sd2")
    assert ids(sd2, "hi! there!!") == [49406, 1883, 256, 997, 748, 49407, 0, 0, 0, 0]
    first, second = load_tokenizers("sdxl")
    assert ids(first, "hi!")[-1] == 49407 and ids(second, "hi!")[-1] == 0


@pytest.mark.parametrize("padding", [END, ZERO])
def test_written_files_are_a_tokenizer(tmp_path, padding):
    from transformers import CLIPTokenizer

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, data in tokenizer_files(padding).items():
        (folder / name).write_bytes(data)
    assert CLIPTokenizer.from_pretrained(folder, local_files_only=True).pad_token == padding
    # Read back through a folder of another family: the files say how to pad, not the family.
    for family in ("sd1", "sd2"):
        (tokenizer,) = load_tokenizers(family, tmp_path)
        assert tokenizer.pad_token == padding
        assert ids(tokenizer, "hi!")[:4] == [49406, 1883, 256, 49407]


def test_a_broken_tokenizer_is_one_line(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match="no vocabulary"):
        load_tokenizers("sd1", tmp_path)
    with pytest.raises(UserError, match="no tokenizer is known"):
        load_tokenizers("flux")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("vocab.json", lambda t: t.replace('"!":0', '"!":1'), "one number"),
        ("vocab.json", lambda t: t.replace("endoftext", "end"), "lacks the token"),
        ("vocab.json", lambda t: t.replace('"!":0', '"!":-1'), "numbers from -1"),
        ("vocab.json", lambda t: t.replace('"!":0', '"!":99999'), "the text encoder knows"),
        ("vocab.json", lambda t: t.replace('"!":0', '"!":"a"'), "a whole number"),
        ("vocab.json", lambda t: t[:1000], "not valid JSON"),
        ("merges.txt", lambda t: t + "\nzzz qqq", "not of two tokens"),
        ("merges.txt", lambda t: t.replace("i n", "in"), "not of two tokens"),
        ("merges.txt", lambda t: "", "no merges"),
        ("tokenizer_config.json", lambda t: t.replace("77", '"a"'), "model_max_length"),
        ("tokenizer_config.json", lambda t: t.replace("77", "2"), "model_max_length"),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path, name, change, words):
    files = {key: data.decode() for key, data in tokenizer_files(END).items()}
    changed = change(files[name])
    assert changed != files[name]
    for key, text in {**files, name: changed}.items():
        (tmp_path / key).write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UserError, match=words) as caught:
        check_tokenizer(tmp_path, 49408)
    assert name in caught.value.line
    with pytest.raises(UserError, match="the text encoder knows 0 to 999"):
        check_tokenizer(ASSETS, 1000)


def test_what_has_passed_is_looked_at_again_when_it_changes(tmp_path, monkeypatch):
    for key, data in tokenizer_files(END).items():
        (tmp_path / key).write_bytes(data)
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    looked = []
    check = tokenizers._check_words
    monkeypatch.setattr(tokenizers, "_check_words", lambda *a: (looked.append(1), check(*a)))
    for _ in range(2):
        check_tokenizer(tmp_path, 49408)
    assert len(looked) == 1
    vocabulary.write_text("{}", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UserError, match="lacks the token"):
            check_tokenizer(tmp_path, 49408)
    assert len(looked) == 3


def test_a_context_without_end_ends_with_the_encoder(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, data in tokenizer_files(END, max_length=10**30).items():
        (folder / name).write_bytes(data)
    encoder = {"max_position_embeddings": 64, "vocab_size": 49408}
    assert load_tokenizers("sd1", tmp_path, [encoder])[0].model_max_length == 64
