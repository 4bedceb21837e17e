"""Bases in the hosts' files: the same tensors and the same answers as from diffusers' folders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import flow_bases, host_files
from helpers.host_bases import WRITERS, Bases, answer, options, refused
from helpers.host_files import Split
from transformers import T5Config, T5EncoderModel

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files import language as host_language
from dreambooth_core.families.host_files.find import find_parts
from dreambooth_core.families.loading import load_base, read_configs
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.formats.storage import read_metadata, write_tensors

pytestmark = pytest.mark.usefixtures("small")


def same(ours: Components, theirs: Components) -> None:
    for name in theirs.family.networks:
        state, wanted = (
            {"vae": parts.vae, **parts.models, **parts.companions}[name].state_dict()
            for parts in (ours, theirs)
        )
        assert state.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert state[key].dtype == tensor.dtype, key
            assert torch.equal(state[key], tensor), key
    assert ours.fingerprint == theirs.fingerprint
    assert ours.prediction_type == theirs.prediction_type == "flow"
    assert torch.equal(answer(ours), answer(theirs))


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_the_folder_to_the_bit(bases: Bases, name: str) -> None:
    _, files = bases.of(name)
    theirs = bases.loaded(name)
    ours = load_base(options(files))
    same(ours, theirs)
    assert ours.settings.get("is_distilled") == theirs.settings.get("is_distilled")


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_result_is_the_hosts_file(bases: Bases, name: str, tmp_path: Path) -> None:
    """The denoiser in the hosts' names beside the folder; as a base it is the same to the bit."""
    _, files = bases.of(name)
    theirs = bases.loaded(name)
    dtype, result = next(theirs.denoiser.parameters()).dtype, tmp_path / "result.safetensors"
    said = {"modelspec.title": "mine"}
    # Nothing could be generated from it alone: what counts is the folder.
    assert theirs.family.write_file(theirs, result, dtype, said) is None
    bring_companions(files, tmp_path)
    assert read_metadata(result)["modelspec.title"] == "mine"
    same(load_base(replace(options(files), model=str(result))), theirs)


@pytest.mark.parametrize("name", WRITERS)
def test_one_checkpoint_may_hold_all(bases: Bases, name: str, tmp_path: Path) -> None:
    folder, files = bases.of(name)
    family = FAMILIES[name]
    whole = dict(prefixed("model.diffusion_model.", files.tensors["transformer"]))
    whole |= prefixed("vae.", files.tensors["vae"])
    for text_encoder in family.text_encoders:
        prefix = f"text_encoders.{text_encoder}."
        whole |= prefixed(f"{prefix}transformer.", files.tensors[text_encoder])
        whole[f"{prefix}logit_scale"] = torch.ones(())
    write_tensors(tmp_path / "all.safetensors", whole)
    bring_companions(files, tmp_path)
    ours = load_base(BaseOptions(model=str(tmp_path / "all.safetensors"), tokenizer=str(folder)))
    same(ours, bases.loaded(name))


def bring_companions(files: Split, folder: Path) -> None:
    """What lies beside the denoiser's file."""
    for file in files.denoiser.parent.glob("unconditional*"):
        shutil.copy(file, folder)


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_headers_alone_tell_the_configurations(
    bases: Bases, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = bases.of(name)
    monkeypatch.setattr("dreambooth_core.formats.checkpoints.pieces.read_tensors", None)
    found = read_configs(options(files), files.denoiser)
    theirs = load_base(BaseOptions(model=str(folder)), weights=False)
    ours = load_base(options(files), weights=False)
    assert found.keys() == set(ours.family.networks)
    for key, model in ours.models.items():
        shapes = {k: t.shape for k, t in model.state_dict().items()}
        assert shapes == {k: t.shape for k, t in theirs.models[key].state_dict().items()}
        assert all(tensor.is_meta for tensor in model.parameters())


@pytest.mark.parametrize(
    ("name", "scaled"),
    [
        ("z_image", None),
        ("z_image", "scale_weight"),
        *((name, "weight_scale") for name in ("z_image", "hidream", "ideogram4", "flux2_dev")),
    ],
)
def test_8_bits_are_read_with_their_scales(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scaled: str | None
) -> None:
    if name == "flux2_dev":
        monkeypatch.setattr(host_language, "LLAMA_HEAD", 8)
    _, files = bases.of(name)
    stored = host_files.as_fp8(files.tensors["transformer"], scaled)
    write_tensors(tmp_path / "fp8.safetensors", stored)
    bring_companions(files, tmp_path)
    ours = load_base(options(replace(files, denoiser=tmp_path / "fp8.safetensors")))
    theirs = bases.loaded(name)
    for name, tensor in theirs.denoiser.state_dict().items():
        mine = ours.denoiser.state_dict()[name]
        assert mine.dtype == torch.bfloat16
        # 3 bits of fraction, and below 2^-6 of the largest nothing finer than 2^-9.
        slack = tensor.abs().max() * 2**-9 if scaled else 2**-10
        torch.testing.assert_close(mine.float(), tensor, rtol=2**-4, atol=float(slack))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(bases: Bases, tmp_path: Path, dtype: torch.dtype) -> None:
    folder, _ = bases.of("z_image")
    files = host_files.write_split(FAMILIES["z_image"], folder, tmp_path, dtype)
    ours = load_base(options(files))
    assert {p.dtype for model in ours.models.values() for p in model.parameters()} == {dtype}
    assert {p.dtype for p in ours.vae.parameters()} == {torch.float32}


def test_what_is_missing_is_named_with_its_folder(bases: Bases) -> None:
    _, files = bases.of("z_image")
    whole = options(files)
    said = refused(replace(whole, text_encoders=[]))
    assert "text encoder Qwen3 4B" in said
    assert "models/text_encoders" in said
    said = refused(replace(whole, vae=None))
    assert "VAE" in said
    assert "models/vae" in said
    said = refused(replace(whole, tokenizer=None))
    assert "comfy/text_encoders/qwen25_tokenizer" in said
    assert "no such file" in refused(replace(whole, text_encoders=["/nowhere.safetensors"]))


def test_parts_of_two_families_are_refused(bases: Bases) -> None:
    image, klein, dev = (bases.of(name)[1] for name in ("z_image", "flux2", "flux"))
    assert "T5 text encoder" in refused(options(replace(image, texts=[*image.texts, dev.texts[1]])))
    assert "32 latent channels" in refused(options(replace(image, vae=klein.vae)))
    said = refused(options(replace(dev, texts=dev.texts[1:])))
    assert "CLIP-L, in a file of its own; named is T5" in said
    assert "T5-XXL" in refused(options(replace(dev, texts=dev.texts[:1])))
    assert "Name one" in refused(options(replace(image, texts=[*image.texts, *klein.texts])))
    third, qwen = (bases.of(name)[1] for name in ("sd3", "qwen_image"))
    assert "CLIP-G" in refused(options(replace(third, texts=[third.texts[0], third.texts[2]])))
    assert "one of video" in refused(options(replace(qwen, vae=image.vae)))
    assert "one of images" in refused(options(replace(image, vae=qwen.vae)))
    said = refused(options(replace(qwen, texts=image.texts)))
    assert "Qwen2.5-VL 7B" in said


def test_a_text_encoder_of_another_size_is_refused(bases: Bases, tmp_path: Path) -> None:
    _, files = bases.of("chroma")
    wide = T5EncoderModel(
        T5Config(
            vocab_size=200,
            d_model=64,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
    path = tmp_path / "wide.safetensors"
    write_tensors(path, {k: v.clone() for k, v in wide.state_dict().items()})
    assert "64 wide" in refused(options(replace(files, texts=[path])))


def test_the_vae_may_be_a_folder(bases: Bases) -> None:
    folder, files = bases.of("z_image")
    theirs = load_base(options(files)).vae.state_dict()
    for place in (folder, folder / "vae"):
        ours = load_base(replace(options(files), vae=str(place))).vae.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_the_other_parts_are_found_in_the_hosts_folders(bases: Bases, tmp_path: Path) -> None:
    """Those that fit, among those of other models."""
    _, files = bases.of("z_image")
    other, _ = bases.of("flux")
    homes = [files.vae.parent, bases.of("flux")[1].vae.parent]
    found = find_parts(files.denoiser, homes[::-1], [other, files.tokenizer])
    assert found is not None and (found.family, found.missing) == ("z_image", [])
    assert found.text_encoders == [str(path) for path in files.texts]
    assert found.tokenizer == str(files.tokenizer)
    assert load_base(
        BaseOptions(
            model=str(files.denoiser),
            text_encoders=found.text_encoders,
            vae=found.vae,
            tokenizer=found.tokenizer,
        ),
        weights=False,
    )
    nothing = find_parts(files.denoiser, [tmp_path])
    assert nothing is not None and [line.partition(" (")[0] for line in nothing.missing] == [
        "its text encoder Qwen3 4B",
        "its VAE",
    ]
    assert find_parts(files.vae, homes) is None


def test_parts_in_each_others_places_are_refused(bases: Bases) -> None:
    _, files = bases.of("z_image")
    whole = options(files)
    assert "no text encoder" in refused(replace(whole, text_encoders=[str(files.vae)]))
    assert "no VAE" in refused(replace(whole, vae=str(files.denoiser)))
    assert "a VAE" in refused(replace(whole, model=str(files.vae)))
    said = refused(replace(whole, model=str(files.texts[0])))
    assert "not a base to train but a language model" in said
    assert "Leave it out" in refused(replace(whole, model=str(files.tokenizer)))


def test_a_file_that_is_cut_or_not_whole_is_refused(bases: Bases, tmp_path: Path) -> None:
    _, files = bases.of("z_image")
    path = tmp_path / "file.safetensors"
    path.write_bytes(files.denoiser.read_bytes()[:-100])
    assert "cut short" in refused(options(replace(files, denoiser=path)))
    path.write_bytes(files.texts[0].read_bytes()[:-100])
    assert "cut short" in refused(options(replace(files, texts=[path])))
    tensors = files.tensors["transformer"]
    for left in ("layers.1.attention.out.weight", "layers.0.attention.q_norm.weight"):
        write_tensors(path, host_files.without(tensors, [left]))
        assert "not a whole transformer" in refused(options(replace(files, denoiser=path)))
    write_tensors(path, {**tensors, "extra.weight": torch.zeros(2)})
    assert "extra.weight has no place" in refused(options(replace(files, denoiser=path)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".wscales", "SVDQuant"),
        (".weight_scale_2", "NVFP4"),
        (".weight.absmax", "bitsandbytes"),
        (".qzeros", "GPTQ"),
    ],
)
def test_quantised_files_are_named(bases: Bases, tmp_path: Path, name: str, kind: str) -> None:
    _, files = bases.of("z_image")
    path = tmp_path / "quantised.safetensors"
    write_tensors(
        path,
        {
            **files.tensors["transformer"],
            f"layers.0.attention.qkv{name}": torch.zeros(2),
            "layers.0.attention.qkv.qweight": torch.zeros(2),
        },
    )
    said = refused(options(replace(files, denoiser=path)))
    assert kind in said
    assert "bf16" in said


def test_a_mistral_that_lacks_what_is_read_is_refused(tmp_path: Path) -> None:
    folder = flow_bases.flux2_dev(tmp_path / "folder", head=8)
    files = host_files.write_split(FAMILIES["flux2_dev"], folder, tmp_path / "files")
    text = files.tensors["text_encoder"]
    layers = [name for name in text if ".layers.30." in name or ".layers.29." in name]
    write_tensors(files.texts[0], host_files.without(text, layers))
    assert "layer 30 is missing" in refused(options(files))


def test_a_clip_of_another_length_is_refused(bases: Bases) -> None:
    """HiDream's read 248 tokens; those of other models read 77."""
    _, files = bases.of("hidream")
    short = bases.of("sd3")[1].texts[0]
    said = refused(options(replace(files, texts=[short, *files.texts[1:]])))
    assert "CLIP-L reads 77 tokens" in said and "248" in said


def test_the_second_denoiser_lies_beside_the_first(bases: Bases, tmp_path: Path) -> None:
    _, files = bases.of("ideogram4")
    home = files.denoiser.parent
    said = refused(options(replace(files, denoiser=home / "unconditional_transformer.safetensors")))
    assert "never sees a prompt" in said
    alone = tmp_path / "ideogram4.safetensors"
    shutil.copy(files.denoiser, alone)
    said = refused(options(replace(files, denoiser=alone)))
    assert "its unconditional denoiser" in said and "models/diffusion_models" in said
    found = find_parts(alone, [home])
    assert found is not None and found.missing[0] == "its unconditional denoiser (beside it)"


@pytest.mark.parametrize("name", ["z_image", "hidream", "ideogram4", "flux2_dev"])
def test_a_gguf_file_is_a_base(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its denoiser is made bf16 as it is read, each weight within half a step of its 8 bits."""
    if name == "flux2_dev":
        monkeypatch.setattr(host_language, "LLAMA_HEAD", 8)
    folder, files = bases.of(name)
    bring_companions(files, tmp_path)
    tensors = files.tensors["transformer"]
    eight = [name for name, t in tensors.items() if t.dim() == 2 and t.shape[1] % 32 == 0]
    host_files.write_gguf(tmp_path / "model.gguf", tensors, eight)
    ours = load_base(replace(options(files), model=str(tmp_path / "model.gguf")))
    theirs = load_base(BaseOptions(model=str(folder)))
    assert len(eight) > 9 and next(ours.denoiser.parameters()).dtype == torch.bfloat16
    for name, weight in theirs.denoiser.state_dict().items():
        step = float(weight.abs().max()) / 100
        found = ours.denoiser.state_dict()[name].float()
        torch.testing.assert_close(found, weight, rtol=0, atol=step, msg=name)


def test_other_gguf_files_are_named(bases: Bases, tmp_path: Path) -> None:
    """llama.cpp's names of a text encoder, another model, a damaged file: one line each."""
    _, files = bases.of("z_image")
    path = tmp_path / "model.gguf"
    host_files.write_gguf(path, {"blk.0.attn_q.weight": torch.ones(2, 32)})
    for asked in (
        replace(options(files), text_encoders=[str(path)]),
        replace(options(files), model=str(path), text_encoders=[], tokenizer=None),
    ):
        said = refused(asked)
        assert "GGUF" in said and ".safetensors" in said
    path.write_bytes(b"GGUF" + bytes(100))
    assert "version 0" in refused(replace(options(files), model=str(path)))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux alone has it")
def test_what_the_system_does_not_let_be_read_is_one_line() -> None:
    with pytest.raises(UserError, match="this file cannot be read"):
        load_base(BaseOptions(model="/proc/self/mem"))
