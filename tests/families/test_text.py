"""Text encoding against a direct computation with transformers: clip skip, long prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.families import KINDS, reduced_base

from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.text import tokenise

LONG = ", ".join(["a red ball on green grass"] * 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: reduced_base(kind, tmp_path_factory.mktemp(kind)) for kind in ("sd1", "sd2", "sdxl")
    }


def load(folder: Path, **changes: int) -> Components:
    return load_base(BaseOptions(model=str(folder), **changes))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_takes_an_earlier_layer_and_norms_it(
    folders: dict[str, Path], family: str, skip: int
) -> None:
    parts = load(folders[family], clip_skip=skip)
    ids = tokenise(parts.tokenizers[0], ["a ball"], max_chunks=1)[:, 0]
    encoder = parts.text_encoders[0]
    with torch.no_grad():
        output = encoder(ids, output_hidden_states=True)
        # Which of the two the last hidden state is, has changed between versions.
        expected = output.last_hidden_state
        if skip > 1:
            body = getattr(encoder, "text_model", encoder)
            expected = body.final_layer_norm(output.hidden_states[-skip])
        actual = parts.family.encode(parts, ["a ball"]).embeds
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("skip", [1, 2])
def test_sdxl_joins_penultimate_layers_without_norm(folders: dict[str, Path], skip: int) -> None:
    parts = load(folders["sdxl"], clip_skip=skip)
    expected = []
    with torch.no_grad():
        for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
            ids = tokenise(tokenizer, ["a ball"], max_chunks=1)[:, 0]
            output = encoder(ids, output_hidden_states=True)
            expected.append(output.hidden_states[-1 - skip])
        actual = parts.family.encode(parts, ["a ball"])
    assert torch.equal(actual.embeds, torch.cat(expected, dim=-1))
    assert actual.pooled is not None and torch.equal(actual.pooled, output.text_embeds)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_long_prompts_are_chunks_side_by_side(folders: dict[str, Path], family: str) -> None:
    parts = load(folders[family])
    words = parts.tokenizers[0](LONG, add_special_tokens=False).input_ids
    assert 75 < len(words) <= 150
    tokenizer = parts.tokenizers[0]
    halves = [tokenizer.decode(words[:75]), tokenizer.decode(words[75:])]
    with torch.no_grad():
        whole = parts.family.encode(parts, [LONG])
        apart = [parts.family.encode(parts, [half]) for half in halves]
    torch.testing.assert_close(whole.embeds, torch.cat([a.embeds for a in apart], dim=1))
    if whole.pooled is not None and apart[0].pooled is not None:
        torch.testing.assert_close(whole.pooled, apart[0].pooled)


def test_prompts_beyond_the_last_chunk_are_cut(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    parts = load(folders["sd1"], max_prompt_chunks=1)
    assert parts.family.encode(parts, [LONG]).embeds.shape[1] == 77
    assert "cut" in caplog.text


def test_padding_of_each_family(folders: dict[str, Path]) -> None:
    ends = {
        family: [int(tokenise(t, ["a"], max_chunks=1)[0, 0, -1]) for t in load(folder).tokenizers]
        for family, folder in folders.items()
    }
    assert ends == {"sd1": [49407], "sd2": [0], "sdxl": [49407, 0]}


@pytest.mark.parametrize("kind", KINDS)
def test_detection(tmp_path: Path, kind: str) -> None:
    family, channels, prediction = KINDS[kind]
    parts = load(reduced_base(kind, tmp_path / kind))
    assert parts.family.name == family
    assert parts.is_inpainting == (channels == 9)
    assert parts.prediction_type == prediction
    assert parts.vae.config.scaling_factor == {"sdxl": 0.13025}.get(family, 0.18215)
