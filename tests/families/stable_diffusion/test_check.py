"""A base that is damaged, or whose parts do not belong together, is refused by name."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reduced_models import reduced_parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.stable_diffusion import build
from dreambooth_core.families.stable_diffusion.check import (
    check_component,
    check_model,
    check_values,
)
from dreambooth_core.families.stable_diffusion.config_rules import check_config, check_scheduler
from dreambooth_core.families.stable_diffusion.convert import refuse_overlap
from dreambooth_core.families.stable_diffusion.folder import read_folder, write_folder
from dreambooth_core.families.stable_diffusion.ldm_yaml import read_yaml
from dreambooth_core.families.stable_diffusion.vae import plan_from_shapes
from dreambooth_core.formats import folders
from dreambooth_core.formats.checkpoints.folder_layout import read_weights
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.storage import write_tensors

MODEL = Path("model.safetensors")


@pytest.fixture(scope="module")
def whole() -> dict[str, ModelParts]:
    """One reduced model of each family; tests change copies."""
    return {family: reduced_parts(family) for family in ("sd1", "sd2", "sdxl")}


def copied(parts: ModelParts) -> ModelParts:
    """The model with configurations and dictionaries of its own, the tensors shared."""
    made = copy.copy(parts)
    made.scheduler = copy.deepcopy(parts.scheduler)
    made.components = {
        name: type(part)(copy.deepcopy(part.config), dict(part.tensors))
        for name, part in parts.components.items()
    }
    return made


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_whole_model_passes(whole, family):
    check_model(whole[family], MODEL)
    check_values(whole[family], MODEL)


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("unet", "block_out_channels", [10**9] * 4, "block_out_channels"),
        ("unet", "block_out_channels", [33, 64, 64, 64], "32 groups"),
        ("unet", "layers_per_block", 16, "more blocks than there are weights|missing"),
        ("unet", "act_fn", "nothing", "act_fn is 'nothing'"),
        ("unet", "norm_eps", float("nan"), "norm_eps is nan"),
        ("unet", "attention_head_dim", -1, "attention_head_dim is -1"),
        ("unet", "cross_attention_dim", 64, r"attn2.to_k.weight has the shape \[32, 32\]"),
        ("vae", "scaling_factor", float("inf"), "scaling_factor is inf"),
        ("vae", "latent_channels", 8, "shape"),
        ("text_encoder", "num_hidden_layers", 128, "more blocks than there are weights"),
        ("text_encoder", "num_attention_heads", 5, "does not divide into 5"),
        ("text_encoder", "hidden_act", 1, "hidden_act is 1"),
        ("text_encoder", "eos_token_id", 50000, "beyond the 49408 words"),
    ],
)
def test_configurations_are_bounded_and_fit_the_weights(whole, part, key, value, words):
    parts = copied(whole["sd1"])
    parts.components[part].config[key] = value
    with pytest.raises(UserError, match=words):
        check_model(parts, MODEL)


def test_a_configuration_that_asks_for_a_terabyte_is_refused_by_arithmetic(whole, monkeypatch):
    import dreambooth_core.families.stable_diffusion.check as module

    parts = copied(whole["sd1"])
    parts.components["unet"].config |= {
        "layers_per_block": 16,
        "transformer_layers_per_block": 64,
    }
    monkeypatch.setattr(module, "shapes", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(UserError, match="more blocks than there are weights"):
        check_component("unet", parts.components["unet"], MODEL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:-1], "has the shape"),
        (lambda t: t.unsqueeze(0), "has the shape"),
        (lambda t: t.flatten()[0], "has the shape"),
        (lambda t: t.to(torch.float8_e4m3fn), "stored as float8_e4m3fn"),
        (lambda t: t.to(torch.int64), "stored as int64"),
        (lambda t: t.to(torch.complex64), "stored as complex64"),
    ],
)
def test_weights_have_the_shape_and_a_type_of_weights(whole, change, words):
    parts = copied(whole["sd1"])
    tensors = parts.components["vae"].tensors
    tensors["decoder.conv_in.weight"] = change(tensors["decoder.conv_in.weight"])
    with pytest.raises(UserError, match=f"VAE's weight decoder.conv_in.weight .*{words}"):
        check_model(parts, MODEL)


def test_missing_and_strange_weights_are_named(whole):
    parts = copied(whole["sd1"])
    del parts.components["unet"].tensors["conv_in.bias"]
    with pytest.raises(UserError, match=r"weight conv_in\.bias is missing"):
        check_model(parts, MODEL)
    parts = copied(whole["sd1"])
    parts.components["unet"].tensors["what"] = torch.zeros(1)
    with pytest.raises(UserError, match="a weight 'what'"):
        check_model(parts, MODEL)


def test_parts_of_two_families_are_refused(whole):
    for family, other, part in (
        ("sd1", "sdxl", "unet"),
        ("sdxl", "sd1", "unet"),
        ("sdxl", "sd2", "text_encoder_2"),
    ):
        parts = copied(whole[family])
        given = "text_encoder" if part == "text_encoder_2" else part
        parts.components[part] = whole[other].components[given]
        with pytest.raises(UserError, match=r"of (another|different) model|is missing"):
            check_model(parts, MODEL)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_nan_and_infinity_are_named(whole, part, value):
    parts = copied(whole["sd1"])
    name = min(parts.components[part].tensors)
    damaged = parts.components[part].tensors[name].clone()
    damaged.view(-1)[-1] = value
    parts.components[part].tensors[name] = damaged
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        check_values(parts, MODEL)


def test_numbers_too_large_for_the_precision_asked_for(whole):
    parts = copied(whole["sd1"])
    tensors = parts.components["unet"].tensors
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1e6
    check_values(parts, MODEL, torch.bfloat16)
    with pytest.raises(
        UserError, match=r"conv_in\.bias has numbers as large as 1e.06, infinite in"
    ):
        check_values(parts, MODEL, torch.float16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_start", float("nan")),
        ("beta_end", 2.0),
        ("beta_start", 0.5),
        ("num_train_timesteps", 10**9),
        ("prediction_type", "x0_prediction"),
        ("trained_betas", [0.1]),
        ("_class_name", None),
    ],
)
def test_a_noise_schedule_is_one(whole, key, value):
    with pytest.raises(UserError, match=key):
        check_scheduler({**whole["sd1"].scheduler, key: value}, MODEL)


def shards(folder: Path) -> dict[str, Any]:
    """Two shards with a tensor each; returns their index."""
    index: dict[str, Any] = {"weight_map": {}}
    for number, name in enumerate("ab", 1):
        file = f"model-0000{number}-of-00002.safetensors"
        write_tensors(folder / file, {name: torch.ones(2)})
        index["weight_map"][name] = file
    return index


def put(folder: Path, index: dict[str, Any]) -> None:
    """Writes the index."""
    text = json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def test_shards_are_what_their_list_says(tmp_path):
    index = shards(tmp_path)
    put(tmp_path, index)
    assert set(read_weights(tmp_path)) == {"a", "b"}
    first, second = index["weight_map"].values()
    for changed, words in (
        ({}, "must name a shard"),
        ({"a": first, "b": "../b.safetensors"}, "is not the name of a shard"),
        ({"a": first}, "does not name"),
        ({"a": second, "b": second}, "does not place|does not name"),
        ({"a": first, "b": second, "c": second}, "'c' is not in its shard"),
        ({"a": first, "b": "model-00003-of-00002.safetensors"}, "no such file|does not name"),
        ({str(n): f"{n}.safetensors" for n in range(2000)}, "2,000 shards"),
    ):
        put(tmp_path, {"weight_map": changed})
        with pytest.raises(UserError, match=words):
            read_weights(tmp_path)


def test_a_folder_has_a_limit_and_only_files_are_files(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_ENTRIES", 2)
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="more than 2 files"):
        folders.entries(tmp_path)
    assert folders.is_file(tmp_path / "a") and not folders.is_file(tmp_path / "x")
    with pytest.raises(UserError, match="this is a folder"):
        folders.is_file(tmp_path)
    with pytest.raises(UserError, match=r"could not read|not a file|no such"):
        folders.is_folder(Path("x" * 5000))


def test_a_model_is_not_written_into_itself(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for target in (base, base / "unet", tmp_path):
        with pytest.raises(UserError):
            refuse_overlap(base, target)
    refuse_overlap(base, tmp_path / "other")


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_to_itself_overlaps_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    refuse_overlap(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1]\nb: *a\n", "references"),
        ("a: " + "[" * 100 + "]" * 100, "too deep"),
        ("model: {params: {unet_config: {params: {num_heads: -3}}}}", "num_heads is -3"),
        ("model: {params: {linear_start: .nan, unet_config: {params: {}}}}", "linear_start"),
        ("model: {params: {cond_stage_config: 7, unet_config: {params: {}}}}", "a mapping"),
        ("model: []", "not a Stable Diffusion configuration"),
    ],
)
def test_yaml_of_others_is_read_strictly(tmp_path, text, words):
    path = tmp_path / "model.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_yaml(path)


def test_a_configuration_is_checked_before_what_depends_on_it(tmp_path, whole):
    write_folder(whole["sd1"], tmp_path / "base")
    file = tmp_path / "base" / "text_encoder" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "vocab_size": "4"}), encoding="utf-8")
    with pytest.raises(UserError, match="vocab_size is '4', and must be a whole number"):
        read_folder(tmp_path / "base")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "silu", "DownBlock2D", "epsilon"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(data=st.data())
def test_any_change_of_a_configuration_is_read_or_refused(whole, data):
    """Nothing but a ``UserError`` leaves the check, and what passes builds the same shapes."""
    family = data.draw(st.sampled_from(["sd1", "sdxl"]))
    part = data.draw(st.sampled_from(sorted(whole[family].components)))
    component = copied(whole[family]).components[part]
    key = data.draw(st.sampled_from(sorted(component.config)))
    component.config[key] = data.draw(JSON)
    try:
        check_component(part, component, MODEL)
    except UserError as error:
        assert error.line
        return
    check_config(part, component.config, MODEL)


@QUICK
@given(key=st.sampled_from(["weight_map", "metadata", "a", "b"]), value=JSON)
def test_any_change_of_an_index_is_read_or_refused(tmp_path, key, value):
    index = shards(tmp_path)
    if key in ("a", "b"):
        index["weight_map"][key] = value
    else:
        index[key] = value
    put(tmp_path, index)
    try:
        assert set(read_weights(tmp_path)) == {"a", "b"}
    except UserError as error:
        assert error.line


def test_libraries_are_imported_before_initial_values_are_switched_off(monkeypatch, whole):
    """transformers keeps torch's functions as it finds them at its import: for good, and with
    them every model that is made later would hold what the memory held."""
    order = []
    maker, without = build._maker, build.without_initial_values
    monkeypatch.setattr(build, "_maker", lambda name: order.append("import") or maker(name))
    monkeypatch.setattr(
        build, "without_initial_values", lambda: order.append("switch off") or without()
    )
    build.empty("text_encoder", whole["sd1"].components["text_encoder"].config)
    assert order == ["import", "switch off"]


def test_a_tiny_autoencoder_is_called_what_it_is() -> None:
    with pytest.raises(Unsupported, match=r"a tiny one .TAESD., made for previews"):
        plan_from_shapes({"taesd_decoder.1.weight": (64, 4, 3, 3)})
