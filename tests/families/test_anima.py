"""Anima, against its modular pipeline."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import flow_proofs as proofs
from helpers import flow_bases, host_files
from safetensors.torch import load_file

from dreambooth_core.errors import UserError
from dreambooth_core.families import anima, sampling
from dreambooth_core.families.host_files import language as host_language
from dreambooth_core.families.host_files.find import find_parts
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.formats.checkpoints.folder_layout import read_weights
from dreambooth_core.formats.storage import write_tensors


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> proofs.Modular:
    return proofs.Modular(flow_bases.anima(tmp_path_factory.mktemp("bases") / "anima"))


def test_call_parity(bench: proofs.Modular) -> None:
    assert proofs.call_parity(bench) < 1e-5


def test_batches_of_unequal_prompts(bench: proofs.Modular) -> None:
    assert proofs.batch_parity(bench) < 1e-5


@pytest.mark.long
def test_overfit(bench: proofs.Modular) -> None:
    assert proofs.overfit(bench, size=48, rate=4e-3, steps=260) < 0.15


def test_loss(bench: proofs.Modular) -> None:
    raw = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    share = 0.4
    found, noise, parts = proofs.trained_loss(bench, raw, share, height=64, width=96)
    config = parts.vae.config
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    clean = (raw - mean) / deviation
    with torch.no_grad():
        answer = parts.denoiser(
            hidden_states=((1 - share) * clean + share * noise).unsqueeze(2),
            timestep=torch.tensor([share]),
            encoder_hidden_states=parts.family.encode(parts, [proofs.PROMPT]).embeds,
            padding_mask=torch.zeros(1, 1, 64, 96),
        ).sample
    direct = (answer.squeeze(2) - (noise - clean)).square().mean()
    assert found == pytest.approx(float(direct), rel=1e-5)


def test_our_sampler_is_the_pipelines(bench: proofs.Modular) -> None:
    guided = replace(bench, guidance=4.0)
    theirs = guided.sample(guided.pipeline(), 64, 96, 3)
    parts = bench.parts()
    pipeline = sampling.build_pipeline(parts, "")
    with torch.no_grad():
        ours = pipeline(
            **parts.family.sampling_arguments(parts, [proofs.PROMPT], "red", 4.0),
            height=64,
            width=96,
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(1)],
        ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def files(bench: proofs.Modular, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseOptions:
    """As ComfyUI has it: the conditioner in the denoiser's file, both behind ``net.``."""
    monkeypatch.setattr(anima, "HEAD", flow_bases.HEAD)
    monkeypatch.setitem(host_language.QWEN3_FACTS, "rope_theta", 10000.0)
    folder, family = bench.folder, FAMILIES["anima"]
    assert family.files is not None
    denoiser = family.files.to_hosts(read_weights(folder / "transformer"))
    conditioner = read_weights(folder / "text_conditioner")
    tensors = {
        "denoiser": {
            **{f"net.{name}": tensor for name, tensor in denoiser.items()},
            **{f"net.llm_adapter.{name}": tensor for name, tensor in conditioner.items()},
            "net.pos_embedder.seq": torch.zeros(4),
        },
        "vae": host_files.ldm(folder / "vae"),
        "text": host_files.text(family, "text_encoder", folder / "text_encoder"),
    }
    for name, each in tensors.items():
        write_tensors(tmp_path / f"{name}.safetensors", each)
    return BaseOptions(
        model=str(tmp_path / "denoiser.safetensors"),
        vae=str(tmp_path / "vae.safetensors"),
        text_encoders=[str(tmp_path / "text.safetensors")],
        tokenizer=str(folder),
    )


def test_the_hosts_files_are_the_folder(
    bench: proofs.Modular, files: BaseOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = bench.parts()
    ours = load_base(files)
    for name, model in {**theirs.models, "vae": theirs.vae}.items():
        state = (ours.vae if name == "vae" else ours.models[name]).state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert ours.fingerprint == theirs.fingerprint
    # No file tells to how many tokens prompts are filled up with zeros.
    ours.text_encoders[1].register_to_config(min_sequence_length=flow_bases.ANIMA_TOKENS)
    torch.testing.assert_close(proofs.predict(ours), proofs.predict(theirs), rtol=0, atol=1e-5)


def test_a_full_result_is_the_hosts_file(bench: proofs.Modular, files: BaseOptions) -> None:
    """With the conditioner in it, which stands in the denoiser's file."""
    theirs, result = bench.parts(), Path(files.model).with_name("result.safetensors")
    assert theirs.family.write_file(theirs, result, torch.float32, {}) is None
    assert load_base(replace(files, model=str(result))).fingerprint == theirs.fingerprint


@pytest.mark.parametrize("named", [".", "qwen25_tokenizer"])
def test_comfyuis_folders_hold_both_tokenizers(
    bench: proofs.Modular, files: BaseOptions, tmp_path: Path, named: str
) -> None:
    for ours, theirs in (("tokenizer", "qwen25_tokenizer"), ("t5_tokenizer", "t5_tokenizer")):
        shutil.copytree(bench.folder / ours, tmp_path / "text_encoders" / theirs)
    place = tmp_path / "text_encoders" / named
    qwen, t5 = load_base(replace(files, tokenizer=str(place)), weights=False).tokenizers
    assert (type(qwen).__name__, type(t5).__name__) == ("Qwen2Tokenizer", "T5Tokenizer")
    found = find_parts(Path(files.model), [tmp_path], [place])
    assert found is not None and (found.family, found.missing) == ("anima", [])
    assert (found.text_encoders, found.vae) == (files.text_encoders, files.vae)
    assert found.tokenizer == str(place)


def test_a_denoiser_without_conditioner_is_another_model(files: BaseOptions) -> None:
    path = Path(files.model)
    left = {k: v.clone() for k, v in load_file(path).items() if "llm_adapter" not in k}
    write_tensors(path, left)
    with pytest.raises(UserError, match="lacks the conditioner"):
        load_base(files)
