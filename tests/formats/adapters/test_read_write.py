"""Files: every layout in and out, exactly; nothing lost; what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights, OftWeights
from dreambooth_core.formats.adapters.peft_config import METADATA_KEY
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import METHODS, adapter_for, assert_same_change, base_of

SD1 = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1."
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_"


def target(tmp_path: Path, layout: str) -> Path:
    return tmp_path / ("folder" if layout == "peft" else "file.safetensors")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lora_round_trips(family: str, layout: str, method: str, tmp_path: Path) -> None:
    base = base_of(family)
    adapter = adapter_for(family, method, every=3, base=base)
    again = read_adapter(write_adapter(adapter, target(tmp_path, layout), layout))
    assert_same_change(adapter, again, base, 0.0)
    assert again.family == family
    assert again.method == adapter.method
    assert again.metadata["ss_output_name"] == "test"
    assert {w.alpha for w in again.modules.values()} == {3.0}


@pytest.mark.parametrize("method", ["loha", "lokr", "oft", "diff"])
def test_relatives_round_trip_in_kohya(method: str, tmp_path: Path) -> None:
    base = base_of("sd1")
    adapter = adapter_for("sd1", method, every=2, base=base)
    again = read_adapter(write_adapter(adapter, target(tmp_path, "kohya")))
    assert_same_change(adapter, again, base, 0.0)
    assert again.method == method


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_loha_and_lokr_round_trip_in_peft(method: str, tmp_path: Path) -> None:
    base = base_of("sd1")
    adapter = adapter_for("sd1", method, every=5, base=base)
    again = read_adapter(write_adapter(adapter, tmp_path / "f", "peft"))
    assert_same_change(adapter, again, base, 0.0)


@pytest.mark.parametrize("terms", [0, 3, 5])
def test_peft_oft_round_trips_in_peft_and_is_refused_in_kohya(terms: int, tmp_path: Path) -> None:
    weight = torch.randn(8, 12)
    blocks = torch.triu(torch.randn(3, 4, 4) * 0.1, diagonal=1)
    name = f"{SD1}to_q"
    adapter = Adapter({name: OftWeights(blocks, side="in", terms=terms)}, family="sd1")
    again = read_adapter(write_adapter(adapter, tmp_path / "f", "peft"))
    assert torch.equal(again.modules[name].delta(weight), adapter.modules[name].delta(weight))
    with pytest.raises(Unsupported, match="turns inputs"):
        write_adapter(adapter, tmp_path / "a.safetensors")


def mixed() -> Adapter:
    """Ranks and alphas that differ, in the UNet and in two text encoders."""
    adapter = adapter_for("sdxl", every=4)
    for i, (name, weights) in enumerate(adapter.modules.items()):
        assert isinstance(weights, LoraWeights)
        rank = 1 + i % 4
        adapter.modules[name] = LoraWeights(
            weights.down[:rank], weights.up[:, :rank], [0.5, 1.0, 7.25][i % 3]
        )
    return adapter


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_ranks_and_alphas_of_each_module_stay(layout: str, tmp_path: Path) -> None:
    adapter = mixed()
    again = read_adapter(write_adapter(adapter, target(tmp_path, layout), layout))
    assert {n: (w.rank, w.alpha) for n, w in again.modules.items()} == {
        n: (w.rank, w.alpha) for n, w in adapter.modules.items()
    }


@pytest.mark.parametrize("first", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("second", ["kohya", "diffusers", "peft"])
def test_any_layout_to_any_other(first: str, second: str, tmp_path: Path) -> None:
    adapter = mixed()
    adapter.metadata["ss_tag_frequency"] = json.dumps({"1_dog": {"sks dog": 4}})
    one = read_adapter(write_adapter(adapter, target(tmp_path / "1", first), first))
    two = read_adapter(write_adapter(one, target(tmp_path / "2", second), second))
    assert_same_change(adapter, two, base_of("sdxl"), 0.0)
    assert two.metadata["ss_tag_frequency"] == adapter.metadata["ss_tag_frequency"]
    assert two.family == "sdxl"


def test_kohya_metadata_is_what_the_hosts_look_at(tmp_path: Path) -> None:
    for family, version, v2 in (
        ("sd1", "sd_v1", "False"),
        ("sd2", "sd_v2", "True"),
        ("sdxl", "sdxl_base_v1-0", "False"),
    ):
        path = write_adapter(adapter_for(family, every=9), tmp_path / f"{family}.safetensors")
        said = storage.read_metadata(path)
        assert (said["ss_base_model_version"], said["ss_v2"]) == (version, v2)
        assert said["ss_network_module"] == "networks.lora"
        assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "3.0")
        assert METADATA_KEY not in said


def test_kohya_keys(tmp_path: Path) -> None:
    keys = set(storage.read_tensors(write_adapter(adapter_for("sd1"), tmp_path / "a.safetensors")))
    assert f"{KOHYA}to_out_0.lora_down.weight" in keys
    assert f"{KOHYA}to_out_0.alpha" in keys
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in keys
    xl = set(storage.read_tensors(write_adapter(adapter_for("sdxl"), tmp_path / "x.safetensors")))
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha" in xl
    assert {k.split("_")[1] for k in xl} == {"unet", "te1", "te2"}


def pair(out: int = 6, width: int = 5, rank: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, width), torch.randn(out, rank)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"{SD1}processor.to_q_lora.down.weight", f"{SD1}processor.to_q_lora.up.weight"),
        (f"{SD1}to_q.lora.down.weight", f"{SD1}to_q.lora.up.weight"),
        (f"{SD1}to_q.lora_A.weight", f"{SD1}to_q.lora_B.weight"),
        (f"{SD1}to_q.lora_A.default.weight", f"{SD1}to_q.lora_B.default.weight"),
        (f"{SD1}to_q.lora_A.my_dog.weight", f"{SD1}to_q.lora_B.my_dog.weight"),
        (f"base_model.model.{SD1}to_q.lora_A.weight", f"base_model.model.{SD1}to_q.lora_B.weight"),
        (f"{SD1[5:]}processor.to_q_lora.down.weight", f"{SD1[5:]}processor.to_q_lora.up.weight"),
        (f"{KOHYA}to_q.lora_down.weight", f"{KOHYA}to_q.lora_up.weight"),
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
        ),
        (
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_down.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
        ),
    ],
)
def test_spellings_of_lora(down: str, up: str, tmp_path: Path) -> None:
    a, b = pair()
    storage.write_tensors(tmp_path / "a.safetensors", {down: a, up: b})
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert list(adapter.modules) == [f"{SD1}to_q"]
    assert torch.allclose(adapter.modules[f"{SD1}to_q"].delta(), b @ a)


@pytest.mark.parametrize(
    "form",
    ["self_attn.q_proj.lora_linear_layer.{}", "self_attn.to_q_lora.{}", "self_attn.q_proj.lora.{}"],
)
def test_spellings_of_old_text_encoders(form: str, tmp_path: Path) -> None:
    a, b = pair()
    stem = "text_encoder.text_model.encoder.layers.1."
    named = {f"{stem}{form.format('down')}.weight": a, f"{stem}{form.format('up')}.weight": b}
    storage.write_tensors(tmp_path / "a.safetensors", named)
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert list(adapter.modules) == [f"{stem}self_attn.q_proj"]


def test_diffusers_metadata_gives_alpha(tmp_path: Path) -> None:
    a, b = pair(rank=4)
    packed = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"attn1.to_k": 12}}
    named = {
        f"{SD1}{part}.lora_{x}.weight": t
        for part in ("to_q", "to_k")
        for x, t in (("A", a), ("B", b))
    }
    path = tmp_path / "a.safetensors"
    storage.write_tensors(path, named, {METADATA_KEY: json.dumps(packed)})
    adapter = read_adapter(path)
    assert adapter.modules[f"{SD1}to_q"].alpha == 2
    assert adapter.modules[f"{SD1}to_k"].alpha == 12
    storage.write_tensors(path, named)
    assert read_adapter(path).modules[f"{SD1}to_q"].alpha == 4  # scale 1 without a word


def test_rank_stabilised_lora_scales_by_the_root(tmp_path: Path) -> None:
    a, b = pair(rank=4)
    storage.write_tensors(
        tmp_path / "adapter_model.safetensors",
        {f"base_model.model.{SD1[5:]}to_q.lora_{x}.weight": t for x, t in (("A", a), ("B", b))},
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        adapter = read_adapter(path)
        assert torch.allclose(adapter.modules[f"{SD1}to_q"].delta(), b @ a * 1.5, atol=1e-6)


def test_a_folder_as_the_example_script_leaves_it(tmp_path: Path) -> None:
    """unet/ and text_encoder/ each with a configuration; CLIP's names with and without prefix."""
    a, b = pair()
    for component, inner in (
        ("unet", f"{SD1[5:]}to_q"),
        ("text_encoder", "{}encoder.layers.0.self_attn.q_proj"),
    ):
        for prefix in ("", "text_model."):
            folder = tmp_path / component
            folder.mkdir(exist_ok=True)
            stem = f"base_model.model.{inner.format(prefix)}"
            named = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            storage.write_tensors(folder / "adapter_model.safetensors", named)
            config = {
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 8,
                "base_model_name_or_path": "stable-diffusion",
            }
            (folder / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(tmp_path)
    assert set(adapter.modules) == {
        f"{SD1}to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    }
    assert {w.alpha for w in adapter.modules.values()} == {8.0}
    assert adapter.metadata["base_model_name_or_path"] == "stable-diffusion"
    # A second adapter of a name of its own stands a folder deeper.
    (tmp_path / "unet").rename(tmp_path / "unet-")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet-").rename(tmp_path / "unet" / "crochet")
    assert set(read_adapter(tmp_path).modules) == set(adapter.modules)


def test_pickled_adapters_are_read_safely(tmp_path: Path) -> None:
    a, b = pair()
    path = tmp_path / "pytorch_lora_weights.bin"
    torch.save({f"{SD1}to_q.lora.down.weight": a, f"{SD1}to_q.lora.up.weight": b}, path)
    assert list(read_adapter(tmp_path).modules) == [f"{SD1}to_q"]
    torch.save({"x": Path}, path)
    with pytest.raises(UserError):
        read_adapter(path)


def test_embeddings_ride_along(tmp_path: Path) -> None:
    adapter = adapter_for("sd1", every=20)
    adapter.extras["bundle_emb.dog.string_to_param.*"] = torch.ones(2, 32)
    again = read_adapter(write_adapter(adapter, tmp_path / "a.safetensors"))
    assert torch.equal(again.extras["bundle_emb.dog.string_to_param.*"], torch.ones(2, 32))


@pytest.mark.parametrize(
    ("key", "word"), [(f"{KOHYA}to_q.a1.weight", "GLoRA"), (f"{KOHYA}to_q.on_input", "IA")]
)
def test_other_methods_are_named(key: str, word: str, tmp_path: Path) -> None:
    storage.write_tensors(tmp_path / "a.safetensors", {key: torch.ones(2, 2)})
    with pytest.raises(Unsupported, match=word):
        read_adapter(tmp_path / "a.safetensors")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="no such file"):
        read_adapter(path)
    with pytest.raises(UserError, match="no adapter in this folder"):
        read_adapter(tmp_path)
    storage.write_tensors(path, {f"{KOHYA}to_q.lora_up.weight": torch.ones(2, 2)})
    with pytest.raises(UserError, match="lacks its tensor 'down'"):
        read_adapter(path)
    storage.write_tensors(path, {"model.layer.weight": torch.ones(2, 2)})
    with pytest.raises(UserError, match="no adapter in this file"):
        read_adapter(path, strict=False)
    a, b = pair()
    named = {f"{KOHYA}to_q.lora_down.weight": a, f"{KOHYA}to_q.lora_up.weight": b}
    storage.write_tensors(path, {**named, "mystery.lora_down.weight": a})
    with pytest.raises(Unsupported, match=r"mystery\.lora_down\.weight"):
        read_adapter(path)
    assert read_adapter(path, strict=False).skipped == ["mystery.lora_down.weight"]
    twice = {f"{SD1}to_q.lora_A.weight": a, f"{SD1}to_q.lora_B.weight": b}
    storage.write_tensors(path, {**named, **twice})
    with pytest.raises(UserError, match="two keys"):
        read_adapter(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError):
        read_adapter(path)
    with pytest.raises(UserError, match="empty"):
        write_adapter(Adapter({}), path)
    with pytest.raises(UserError, match="no layout"):
        write_adapter(adapter_for("sd1", every=30), path, "onnx")


@pytest.mark.parametrize("method", ["loha", "lokr", "oft", "diff"])
def test_diffusers_refuses_what_it_cannot_hold(method: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="kohya"):
        write_adapter(adapter_for("sd1", method, every=20), tmp_path / "a.safetensors", "diffusers")


BASES = {family: base_of(family) for family in ("sd1", "sdxl")}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    family=st.sampled_from(["sd1", "sdxl"]),
    picks=st.lists(
        st.tuples(
            st.integers(0, 500),
            st.sampled_from(METHODS),
            st.integers(1, 9),
            st.floats(0.015625, 64, width=16, allow_nan=False),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_no_key_is_lost_or_doubled(
    family: str, picks: list[tuple[int, str, int, float]], tmp_path: Path
) -> None:
    """Any modules, methods, ranks and alphas in one file."""
    base = BASES[family]
    names = list(base)
    modules = {}
    for index, method, rank, alpha in picks:
        name = names[index % len(names)]
        one = {name: base[name]}
        made = adapter_for(family, method, rank=rank, alpha=alpha, seed=index, base=one).modules
        modules.update(made)
    if not modules:
        return
    adapter = Adapter(modules, family=family)
    path = write_adapter(adapter, tmp_path / "any.safetensors")
    again = read_adapter(path)
    assert_same_change(adapter, again, base, 0.0)
    count = sum(len(w.tensors()) for w in adapter.modules.values())
    assert len(storage.read_tensors(path)) == count
