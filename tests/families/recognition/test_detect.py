"""Files of every kind are recognised and named."""

from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import torch
from helpers.reduced_models import full_parts, reduced_parts
from safetensors.torch import save_file

from dreambooth_core.errors import UserError
from dreambooth_core.families.recognition import detect
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.single_read import read_single_file
from dreambooth_core.families.stable_diffusion.single_write import tensors_of, write_single_file


def saved(path, *names, **shaped):
    tensors = {name: torch.zeros(2, 2) for name in names}
    tensors |= {name.replace("__", "."): torch.zeros(shape) for name, shape in shaped.items()}
    save_file(tensors, path)
    return path


BY_NAMES = [
    (["double_blocks.0.img_attn.norm.key_norm.scale"], "checkpoint", "flux"),
    (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "denoiser", "sd3"),
    (["add_embedding.pool.positional_embedding", "down_blocks.0.x"], "checkpoint", "deepfloyd"),
    (["clip_txt_mapper.weight"], "checkpoint", "cascade"),
    (["decoder.up.0.block.0.conv1.weight", "encoder.down.0.block.0.conv1.weight"], "vae", None),
    (["control_model.input_blocks.0.0.weight"], "controlnet", None),
    (["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"], "controlnet", None),
    (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "adapter", "flux"),
    (["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"], "adapter", "sdxl"),
    (["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"], "adapter", None),
    (["down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"], "motion module", None),
    (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "ip-adapter", None),
    (["RRDB_trunk.0.RDB1.conv1.weight"], "upscaler", None),
    (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "text encoder", None),
    (["encoder.block.0.layer.0.SelfAttention.q.weight"], "text encoder", "t5"),
    (["taesd_decoder.1.weight"], "vae", "taesd"),
]


@pytest.mark.parametrize(("names", "kind", "family"), BY_NAMES)
def test_by_names(tmp_path, names, kind, family):
    found = detect.identify(saved(tmp_path / "a.safetensors", *names))
    assert (found.kind, found.family) == (kind, family)


@pytest.mark.parametrize("tail", ["lora_down.weight", "diff"])
@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_adapters_by_width(tmp_path, width, family, tail):
    name = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{tail}"
    save_file({name: torch.zeros(4, width)}, tmp_path / "a.safetensors")
    found = detect.identify(tmp_path / "a.safetensors")
    assert (found.kind, found.family) == ("adapter", family)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("channels", [4, 9])
def test_full_checkpoints_by_shapes(family, channels):
    shapes = {
        k: tuple(t.shape)
        for k, t in tensors_of(full_parts(family, in_channels=channels), "").items()
    }
    kind, found, label = detect._classify(shapes, {})
    assert (kind, found) == ("checkpoint", family) and "Stable Diffusion" in label
    assert detect._checkpoint_details(shapes, {})["variant"] == (
        "inpainting" if channels == 9 else "base"
    )


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_written_models(tmp_path, family):
    made = reduced_parts(family, prediction_type="v_prediction", zero_terminal_snr=True)
    write_single_file(made, tmp_path / "a.safetensors")
    write_single_file(made, tmp_path / "a.ckpt")
    write_folder(made, tmp_path / "folder")
    for name, holder in (("a.safetensors", "safetensors"), ("a.ckpt", "pickle")):
        found = detect.identify(tmp_path / name)
        assert (found.kind, found.family, found.container) == ("checkpoint", family, holder)
        assert found.details["prediction_type"] == "v_prediction"
        assert found.details["zero_terminal_snr"] and found.details["vae"]
        json.dumps(found.as_dict())
    found = detect.identify(tmp_path / "folder")
    assert (found.kind, found.family) == ("diffusers", family)
    assert detect.identify(tmp_path / "folder" / "unet").kind == "unet"
    assert detect.identify(tmp_path / "folder" / "vae").kind == "vae"


def test_embeddings(tmp_path):
    save_file({"emb_params": torch.zeros(4, 768)}, tmp_path / "a.safetensors")
    assert detect.identify(tmp_path / "a.safetensors").kind == "embedding"
    save_file({"<cat>": torch.zeros(768)}, tmp_path / "b.safetensors")
    found = detect.identify(tmp_path / "b.safetensors")
    assert (found.kind, found.family) == ("embedding", "sd1")
    save_file(
        {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, tmp_path / "c.safetensors"
    )
    assert detect.identify(tmp_path / "c.safetensors").family == "sdxl"
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}}, tmp_path / "d.pt")
    assert detect.identify(tmp_path / "d.pt").kind == "embedding"


FOREIGN = [
    (b"<!DOCTYPE html><html>Log in</html>", "a web page"),
    (b"\n  <html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    (b"GGUF\x03\0\0\0", "GGUF"),
    (b'{"error": "Unauthorized"}', "JSON"),
    (b"Access denied: sign in first\n", "a text file"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x1f\x8b\x08", "gzip"),
]


@pytest.mark.parametrize(("data", "words"), FOREIGN)
def test_foreign_files_are_named_and_refused(tmp_path, data, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data + b" " * 20)
    found = detect.identify(path)
    assert found.kind == detect.NOT_A_MODEL and words in found.label and found.advice
    with pytest.raises(UserError, match=words):
        read_single_file(path)


def test_archives_and_paddle(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.safetensors", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "zip" in detect.identify(tmp_path / "a.safetensors").label
    (tmp_path / "b.pdparams").write_bytes(pickle.dumps({"a": [1]}, protocol=4))
    assert "Paddle" in detect.identify(tmp_path / "b.pdparams").label
    (tmp_path / "c.ckpt").write_bytes(pickle.dumps({"StructuredToParameterName@@": {}}, protocol=4))
    assert "Paddle" in detect.identify(tmp_path / "c.ckpt").label


def test_nothing_there(tmp_path):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder").mkdir()
    saved(tmp_path / "odd.safetensors", "some.thing", "other.thing")
    for name, words in (
        ("none.safetensors", "no such file"),
        ("empty.safetensors", "empty"),
        ("folder", "holds no model"),
        ("odd.safetensors", r"unknown kind: 2 tensors, for example other\.thing"),
    ):
        with pytest.raises(UserError, match=words):
            detect.identify(tmp_path / name)


@pytest.mark.parametrize("names", [case[0] for case in BY_NAMES])
def test_reading_another_kind_as_a_checkpoint_names_it(tmp_path, names):
    path = saved(tmp_path / "a.safetensors", *names)
    with pytest.raises(UserError, match=r"this is .*, not a Stable Diffusion"):
        read_single_file(path)
