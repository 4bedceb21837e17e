"""Flux.2 Klein and dev, against their diffusers pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import flow_proofs as proofs
from helpers import flow_bases
from helpers.family_adapters import family_adapter
from torch import Tensor

from dreambooth_core.disk import write_json
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.names import names_of
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.merge import Part, merge
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter

TOKENS = {"klein": 32, "dev": 48}
"""Of a prompt within its template."""


def spatial(parts: Components, packed: Tensor, height: int, width: int) -> Tensor:
    """The pipeline's tokens ``[1, n, channels]`` as our latents."""
    return packed.transpose(1, 2).reshape(len(packed), -1, height // 16, width // 16)


@pytest.fixture(scope="module", params=list(TOKENS))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> proofs.Bench:
    kind, tokens = request.param, TOKENS[request.param]
    folder = tmp_path_factory.mktemp("bases") / kind
    if kind == "klein":
        flow_bases.flux2_klein(folder, channels=8)  # as dev: overfitting takes a tenth of the time
    else:
        flow_bases.flux2_dev(folder)
    call: dict[str, Any] = {"guidance_scale": 1.0, "max_sequence_length": tokens}
    return proofs.Bench(folder, call, tokens, inner=spatial)


def test_call_parity(bench: proofs.Bench) -> None:
    assert proofs.call_parity(bench) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Bench) -> None:
    assert proofs.batch_parity(bench) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("bench", ["klein", "dev"], indirect=True)
def test_overfit(bench: proofs.Bench) -> None:
    steps = 200 if bench.tokens == TOKENS["dev"] else 250
    assert proofs.overfit(bench, steps=steps) < 0.15


def test_loss(bench: proofs.Bench) -> None:
    """v = noise - x0 of folded, normalised latents at the time s, with no shift; dev is told the
    guidance 1."""
    channels = bench.parts().vae.config.latent_channels
    raw = torch.randn(1, channels, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    blocks = raw.view(1, -1, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, -1, 4, 6)
    norm = parts.vae.bn
    spread = (norm.running_var + parts.vae.config.batch_norm_eps).sqrt()
    clean = (blocks - norm.running_mean[None, :, None, None]) / spread[None, :, None, None]
    noisy = (1 - share) * clean + share * noise
    embeds = parts.family.encode(parts, [proofs.PROMPT]).embeds
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    zeros = torch.zeros(24, dtype=torch.int64)
    image = torch.stack([zeros, rows.flatten(), columns.flatten(), zeros], dim=1)
    text = torch.zeros(embeds.shape[1], 4, dtype=torch.int64)
    text[:, 3] = torch.arange(embeds.shape[1])
    told = torch.ones(1) if parts.denoiser.config.guidance_embeds else None
    with torch.no_grad():
        answer = parts.denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=torch.tensor([share]),
            guidance=told,
            encoder_hidden_states=embeds,
            txt_ids=text[None],
            img_ids=image[None],
        ).sample
    target = (noise - clean).flatten(2).transpose(1, 2)
    assert found == pytest.approx(float((answer - target).square().mean()), rel=1e-5)


def test_what_is_decoded_is_what_was_encoded(bench: proofs.Bench) -> None:
    parts = bench.parts()
    raw = torch.randn(2, parts.vae.config.latent_channels, 8, 12)
    torch.testing.assert_close(parts.family.unscaled(parts, parts.family.scaled(parts, raw)), raw)


def test_a_distilled_base_is_told(tmp_path: Path) -> None:
    def warnings(**kind: bool) -> list[str]:
        parts = proofs.Bench(flow_bases.flux2_klein(tmp_path / str(kind), **kind)).parts()
        return parts.family.warnings(parts)

    assert not warnings()
    assert "distilled" in warnings(distilled=True)[0]


def test_devs_processor_needs_no_torchvision(tmp_path: Path) -> None:
    """The published folder names PixtralProcessor, which does; prompts need its tokenizer alone."""
    folder = flow_bases.flux2_dev(tmp_path / "dev")
    plain = proofs.Bench(folder, tokens=TOKENS["dev"]).parts()
    index = read_json(folder / "model_index.json")
    write_json(
        folder / "model_index.json", {**index, "tokenizer": ["transformers", "PixtralProcessor"]}
    )
    processor = {"processor_class": "PixtralProcessor", "patch_size": 14}
    write_json(folder / "tokenizer" / "processor_config.json", processor)
    settings = read_json(folder / "tokenizer" / "tokenizer_config.json")
    write_json(
        folder / "tokenizer" / "tokenizer_config.json",
        {**settings, "processor_class": "PixtralProcessor", "tokenizer_class": "LlamaTokenizer"},
    )
    found = proofs.Bench(folder, tokens=TOKENS["dev"]).parts()
    said = [parts.family.encode(parts, [proofs.PROMPT]).embeds for parts in (plain, found)]
    assert torch.equal(*said)


def test_adapters_of_dev_and_klein_are_told_apart(tmp_path: Path) -> None:
    """By their widths alone: all names are the same."""
    names = names_of("flux2")
    assert names is not None
    for width, label in ((6144, "Flux.2 dev"), (3072, "Flux.2 Klein 4B"), (4096, "Klein 9B")):
        adapter = family_adapter(names, only=("to_qkv_mlp_proj",), width=width, blocks=1)
        for layout in ("diffusers", "host"):
            path = write_adapter(adapter, tmp_path / f"{width}-{layout}.safetensors", layout)
            assert label in identify(path).label
    files = [tmp_path / f"{width}-host.safetensors" for width in (6144, 3072)]
    with pytest.raises(UserError, match=r"of different sizes.* Merge adapters of one base"):
        merge([Part(read_adapter(file), 0.5) for file in files])
    parts = proofs.Bench(flow_bases.flux2_dev(tmp_path / "base")).parts()
    other = family_adapter(names, only=("to_qkv_mlp_proj",), width=32, blocks=1)
    with pytest.raises(UserError, match="Use an adapter that was made for this base"):
        AdapterStack(parts.models).load("other", other)
