"""CLIP tokenizers from the package's own vocabulary."""

from __future__ import annotations

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.formats.tokenizers import END, ZERO, load_tokenizers, tokenizer_files


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
