"""Single file and folder, both ways, bit for bit, over families, channels and precisions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.reduced_models import random_tensors, reduced_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.stable_diffusion import single_layout, unet, unet_config, vae
from dreambooth_core.families.stable_diffusion.build import build, empty
from dreambooth_core.families.stable_diffusion.folder import REMAINDER, read_folder, write_folder
from dreambooth_core.families.stable_diffusion.parts import is_inpainting
from dreambooth_core.families.stable_diffusion.single_read import OWN_KEY, read_single_file
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats import storage
from dreambooth_core.formats.checkpoints.networks import component_of
from dreambooth_core.formats.checkpoints.pairs import to_diffusers, to_single
from dreambooth_core.formats.checkpoints.parts import ModelParts

MODELS = [
    ("sd1", 4, "epsilon"),
    ("sd1", 9, "v_prediction"),
    ("sd2", 4, "v_prediction"),
    ("sd2", 9, "epsilon"),
    ("sdxl", 4, "epsilon"),
    ("sdxl", 9, "v_prediction"),
]


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first
    )


def same_model(first: ModelParts, second: ModelParts) -> None:
    assert first.family == second.family
    assert first.components.keys() == second.components.keys()
    for name, part in first.components.items():
        assert equal(part.tensors, second.components[name].tensors), name
        assert part.config == second.components[name].config
    assert first.scheduler == second.scheduler


@pytest.mark.parametrize(("family", "channels", "prediction"), MODELS)
def test_file_folder_file(tmp_path, family, channels, prediction):
    """Each family in both precisions."""
    dtype = torch.float32 if channels == 4 else torch.bfloat16
    made = reduced_parts(family, in_channels=channels, prediction_type=prediction, dtype=dtype)
    write_single_file(made, tmp_path / "a.safetensors")
    read = read_single_file(tmp_path / "a.safetensors")
    same_model(made, read)
    assert (is_inpainting(read), read.prediction_type) == (channels == 9, prediction)
    write_folder(read, tmp_path / "folder")
    folder = read_folder(tmp_path / "folder")
    same_model(made, folder)
    write_single_file(folder, tmp_path / "b.safetensors")
    assert equal(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_pickle_holds_the_same(tmp_path, family):
    made = reduced_parts(family, dtype=torch.float16, zero_terminal_snr=True)
    write_single_file(made, tmp_path / "a.ckpt")
    same_model(made, read_single_file(tmp_path / "a.ckpt"))
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_yaml_alone_tells_what_shapes_cannot(tmp_path, family):
    """Without our metadata: heads, prediction, scale and betas come from the yaml."""
    made = reduced_parts(family, prediction_type="v_prediction")
    made.components["vae"].config["scaling_factor"] = 0.25
    made.scheduler["beta_end"] = 0.02
    if family == "sdxl":  # its yaml has no betas, and OpenCLIP's heads are not in it
        made.scheduler["beta_end"] = 0.012
        wide = made.components["text_encoder_2"].config
        wide["num_attention_heads"] = 1
    path = tmp_path / "a.safetensors"
    write_single_file(made, path)
    save_file(load_file(path), path)
    assert OWN_KEY not in storage.read_metadata(path)
    read = read_single_file(path)
    assert read.prediction_type == "v_prediction"
    assert read.scheduler["beta_end"] == made.scheduler["beta_end"]
    assert read.components["vae"].config["scaling_factor"] == 0.25
    for name in ("unet", "text_encoder"):
        mine, theirs = made.components[name].config, read.components[name].config
        for key in (
            "attention_head_dim",
            "num_attention_heads",
            "hidden_act",
            "addition_time_embed_dim",
        ):
            assert mine.get(key) == theirs.get(key), (name, key)
    assert equal(made.components["unet"].tensors, read.components["unet"].tensors)


def test_a_moved_yaml_still_finds_its_text_encoder(tmp_path):
    (tmp_path / "old").mkdir()
    write_single_file(reduced_parts("sd1"), tmp_path / "old" / "a.safetensors")
    (tmp_path / "old").rename(tmp_path / "new")
    path = tmp_path / "new" / "a.safetensors"
    save_file(load_file(path), path)
    assert read_single_file(path).components["text_encoder"].config["num_attention_heads"] == 2


def test_a_reduced_file_without_any_configuration_asks_for_it(tmp_path):
    path = tmp_path / "a.safetensors"
    write_single_file(reduced_parts("sdxl"), path, yaml="never")
    save_file(load_file(path), path)
    with pytest.raises(
        UserError, match=r"a\.safetensors: the number .*heads.*original_config_file"
    ):
        read_single_file(path)


def test_a_yaml_of_another_model_is_refused(tmp_path):
    write_single_file(reduced_parts("sd1"), tmp_path / "a.safetensors")
    write_single_file(reduced_parts("sd1", in_channels=9), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="in_channels is 9, the file has 4"):
        read_single_file(tmp_path / "a.safetensors", config_file=tmp_path / "b.yaml")


def test_sd2_remainder_travels_through_a_folder(tmp_path):
    """The 24th layer and the projection, which diffusers has no place for."""
    write_single_file(reduced_parts("sd2"), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    prefix = "cond_stage_model.model."
    rest = [
        k for k in tensors if ".resblocks.3." in k or k.endswith(("text_projection", "logit_scale"))
    ]
    assert len(rest) == 14
    for name in rest:
        tensors[name] = torch.randn_like(tensors[name])
    tensors[f"{prefix}attn_mask"] = torch.zeros(77, 77)
    storage.write_tensors(
        tmp_path / "b.safetensors", tensors, storage.read_metadata(tmp_path / "a.safetensors")
    )
    write_folder(read_single_file(tmp_path / "b.safetensors"), tmp_path / "folder")
    assert (tmp_path / "folder" / REMAINDER).exists()
    write_single_file(read_folder(tmp_path / "folder"), tmp_path / "c.safetensors")
    assert equal(tensors, load_file(tmp_path / "c.safetensors"))
    write_single_file(read_folder(tmp_path / "folder"), tmp_path / "d.safetensors", extras="none")
    assert equal(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "d.safetensors"))


def test_a_filled_last_layer_passes_its_input_through(tmp_path):
    """What is written where diffusers has nothing must not change a text that does read it."""
    made = reduced_parts("sd2")
    write_single_file(made, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    here = "cond_stage_model.model.transformer.resblocks.3."
    assert (
        not tensors[f"{here}attn.out_proj.weight"].any()
        and not tensors[f"{here}mlp.c_proj.bias"].any()
    )
    assert (
        not tensors[f"{here}mlp.c_proj.weight"].any()
        and not tensors[f"{here}attn.out_proj.bias"].any()
    )


def test_other_tensors_are_kept_or_dropped_as_asked(tmp_path):
    made = reduced_parts("sd1")
    made.extras = {"model_ema.decay": torch.tensor(0.5), "betas": torch.ones(4)}
    for extras, there in (("text", False), ("all", True), ("none", False)):
        write_single_file(made, tmp_path / "a.safetensors", extras=extras)
        assert ("betas" in storage.read_header(tmp_path / "a.safetensors").tensors) is there
    write_single_file(made, tmp_path / "a.safetensors", extras="all")
    write_folder(read_single_file(tmp_path / "a.safetensors"), tmp_path / "folder", extras="all")
    assert equal(read_folder(tmp_path / "folder").extras, made.extras)


def test_networks_are_built_and_taken_apart(tmp_path):
    made = reduced_parts("sdxl", dtype=torch.float16)
    write_single_file(made, tmp_path / "a.safetensors")
    models = build(read_single_file(tmp_path / "a.safetensors"), dtype=torch.float32)
    assert {p.dtype for m in models.values() for p in m.parameters()} == {torch.float32}
    ids = torch.randint(0, 1000, (1, 77))
    assert models["text_encoder"](ids).last_hidden_state.isfinite().all()
    for name, model in models.items():
        back = component_of(name, model).tensors
        expected = {k: t.float() for k, t in made.components[name].tensors.items()}
        assert equal(back, expected)


def test_what_the_layout_cannot_say_is_refused():
    config = reduced_parts("sd1").components["unet"].config
    for change in (
        {"dual_cross_attention": True},
        {"class_embed_type": "timestep"},
        {"down_block_types": ["SimpleCrossAttnDownBlock2D", *config["down_block_types"][1:]]},
    ):
        with pytest.raises(Unsupported, match="no single-file layout"):
            unet.plan_from_config({**config, **change})


levels = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([32, 64, 96]), min_size=n, max_size=n),
        st.lists(st.integers(1, 3), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@settings(max_examples=20, deadline=None)
@given(levels, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([4, 8, 9]))
def test_any_unet_keeps_every_weight(drawn, linear, added, middle, channels):
    """No weight lost, none doubled, bit for bit, and the plan is found again."""
    widths, blocks, depths, lopsided = drawn
    made = []
    for width, count, depth, odd in zip(widths, blocks, depths, lopsided, strict=True):
        up = (depth + 1 if odd and depth else depth,) * (count + 1)
        made.append(unet.Level(width, (depth,) * count, up))
    last = depths[-1] or 1
    if not any(depths) and not middle:
        middle = True
    plan = unet.UNetPlan(
        in_channels=channels,
        out_channels=4,
        levels=tuple(made),
        middle=last if middle else None,
        context=16,
        linear=linear,
        added=80 if added else None,
    )
    config = unet_config.config_from_plan(plan, (4,) * len(made), sample_size=8)
    assert unet.plan_from_config(config) == plan
    shapes = empty("unet", config).state_dict()
    names = [name for pair in unet.pairs_of(plan) for name in pair.diffusers]
    assert sorted(names) == sorted(shapes)
    tensors = {name: torch.randn(t.shape) for name, t in shapes.items()}
    single = to_single(unet.pairs_of(plan), tensors, "here")
    assert len(single) == len(tensors)
    assert unet.plan_from_shapes({k: tuple(t.shape) for k, t in single.items()}) == plan
    assert equal(to_diffusers(unet.pairs_of(plan), single, "here"), tensors)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([32, 64, 96]), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 16),
    st.booleans(),
)
def test_any_autoencoder_keeps_every_weight(widths, blocks, latent, quant):
    plan = vae.VAEPlan(tuple(widths), blocks, latent, 3, 3, quant)
    config = vae.config_from_plan(plan, scaling=0.2, sample_size=64)
    assert vae.plan_from_config(config) == plan
    tensors = random_tensors("vae", config)
    single = to_single(vae.pairs_of(plan), tensors, "here")
    assert single["encoder.mid.attn_1.q.weight"].ndim == 4
    shapes = {k: tuple(t.shape) for k, t in single.items()}
    assert vae.plan_from_shapes(shapes) == plan
    assert vae.plan_from_diffusers_shapes({k: t.shape for k, t in tensors.items()}) == plan
    assert equal(to_diffusers(vae.pairs_of(plan), single, "here"), tensors)


def test_uneven_transformer_depths_travel_through_a_configuration():
    """As in distilled SDXL models: depths that differ within a level."""
    uneven = (
        unet.Level(32, (0, 0), (0, 0, 0)),
        unet.Level(64, (2, 2), (2, 1, 1)),
        unet.Level(64, (4, 4), (4, 4, 10)),
    )
    plan = unet.UNetPlan(4, 4, uneven, 4, 16, True, 80)
    config = unet_config.config_from_plan(plan, (4, 4, 4), sample_size=8)
    assert unet.plan_from_config(config) == plan
    shapes = empty("unet", config).state_dict()
    names = [name for pair in unet.pairs_of(plan) for name in pair.diffusers]
    assert sorted(names) == sorted(shapes)


def test_a_foreign_part_inside_the_unet_is_named(tmp_path):
    write_single_file(reduced_parts("sd1"), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    tensors[f"{single_layout.UNET}position_net.linears.0.weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(Unsupported, match=r"not Stable Diffusion's: position_net"):
        read_single_file(tmp_path / "b.safetensors", config_file=tmp_path / "a.yaml")


def test_metadata_of_another_model_is_not_believed(tmp_path):
    write_single_file(reduced_parts("sd1"), tmp_path / "a.safetensors")
    write_single_file(reduced_parts("sd1", in_channels=9), tmp_path / "b.safetensors")
    wrong = storage.read_metadata(tmp_path / "b.safetensors")
    storage.write_tensors(tmp_path / "a.safetensors", load_file(tmp_path / "a.safetensors"), wrong)
    read = read_single_file(tmp_path / "a.safetensors")
    assert not is_inpainting(read) and "unet configuration does not fit" in read.warnings[0]


def test_missing_networks_are_named(tmp_path):
    made = reduced_parts("sd1")
    del made.components["vae"]
    with pytest.raises(UserError, match=r"no VAE in this model\. Give one with --vae"):
        write_folder(made, tmp_path / "x")
    broken = replace(reduced_parts("sd1"), components=reduced_parts("sd1").components)
    del broken.components["unet"].tensors["conv_in.weight"]
    with pytest.raises(UserError, match=r"conv_in\.weight is missing"):
        write_single_file(broken, tmp_path / "x.safetensors")
