"""Adapters of families other than Stable Diffusion 1, 2 and XL: names, hosts and tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.errors import Unsupported
from dreambooth_core.families.names import NAMES, LayerNames, names_of
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.hosts import judge
from dreambooth_core.formats.adapters.merge import Part, merge
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.naming import family_of_keys
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import host_layout, write_adapter
from tests.helpers.adapters import relative, weights_for
from tests.helpers.family_adapters import family_adapter

LAYOUTS = ("kohya", "comfyui", "diffusers")
by_family = pytest.mark.parametrize("names", NAMES.ours().values(), ids=lambda names: names.family)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {k: tuple(e.shape) for k, e in storage.read_header(path).tensors.items()}


def lora_keys(names: list[str], out: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """Keys of a LoRA of rank 4 in diffusers' tails."""
    return {
        f"{name}.{tail}": shape
        for name in names
        for tail, shape in (("lora_A.weight", (4, inputs)), ("lora_B.weight", (out, 4)))
    }


def same(a: Adapter, b: Adapter) -> None:
    assert set(a.modules) == set(b.modules)
    for name, weights in a.modules.items():
        assert relative(b.modules[name].delta(), weights.delta()) < 1e-6, name


@by_family
@pytest.mark.parametrize("layout", [*LAYOUTS, "peft"])
def test_every_layout_says_the_same(names: LayerNames, layout: str, tmp_path: Path) -> None:
    adapter = family_adapter(names)
    if layout == "peft":
        adapter.modules = {n: w for n, w in adapter.modules.items() if "conditioner" not in n}
    path = write_adapter(
        adapter, tmp_path / f"a{'' if layout == 'peft' else '.safetensors'}", layout
    )
    again = read_adapter(path)
    assert again.family == names.family
    back = write_adapter(again, tmp_path / "back.safetensors", "diffusers")
    same(adapter, read_adapter(back))


@by_family
def test_hosts_load_the_whole_file(names: LayerNames, tmp_path: Path) -> None:
    adapter = family_adapter(names)
    path = write_adapter(adapter, tmp_path / "a.safetensors", "host")
    told = {each.host: each for each in judge(shapes_of(path), names.family)}
    assert {host for host, each in told.items() if each.runs} == set(names.hosts)
    whole = {host for host in names.hosts if host != "diffusers"}
    if host_layout(adapter) == "diffusers":
        whole = set(names.hosts) if not names.unknown_to_hosts else set()
    partly = {"sd3": {"Forge", "A1111"}, "anima": {"Forge Neo"}, "chroma": {"Forge"}}
    for host in whole - partly.get(names.family, set()):
        assert told[host].loaded == told[host].total, told[host].text


@pytest.mark.parametrize(
    ("family", "name", "host", "loaded"),
    [
        ("flux", "diffusion_model.transformer_blocks.0.attn.to_q", "ComfyUI", False),
        ("flux", "transformer.transformer_blocks.0.attn.to_q", "Forge", True),
        ("chroma", "transformer.transformer_blocks.0.attn.to_q", "Forge", False),
        ("flux", "lora_transformer_transformer_blocks_0_attn_to_q", "ComfyUI", True),
        ("flux", "lora_unet_transformer_blocks_0_attn_to_q", "ComfyUI", False),
        ("sd3", "transformer.transformer_blocks.0.attn.to_q", "A1111", True),
        ("sd3", "transformer.transformer_blocks.0.attn.add_q_proj", "A1111", False),
        ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", "A1111", False),
        ("flux2", "transformer.double_stream_modulation_img.linear", "ComfyUI", False),
        ("z_image", "lora_unet_layers_0_attention_to_q", "ComfyUI", False),
        ("z_image", "lora_unet_layers_0_attention_to_q", "diffusers", True),
        ("z_image", "lora_unet_layers_0_attention_qkv", "Forge Neo", True),
        ("z_image", "diffusion_model.layers.0.attention.to_q", "Forge Neo", True),
        ("z_image", "base_model.model.layers.0.attention.to_q", "ComfyUI", False),
        ("lumina2", "diffusion_model.layers.0.attn.to_q", "ComfyUI", False),
        ("lumina2", "diffusion_model.layers.0.attention.qkv", "ComfyUI", True),
        ("anima", "transformer.transformer_blocks.0.attn1.to_q", "ComfyUI", False),
        ("anima", "lora_unet_blocks_0_self_attn_q_proj", "Forge Neo", True),
        ("krea2", "diffusion_model.transformer_blocks.0.attn.to_q", "ComfyUI", True),
        ("krea2", "diffusion_model.transformer_blocks.0.attn.to_q", "diffusers", False),
    ],
)
def test_names_that_a_host_passes_over(family: str, name: str, host: str, loaded: bool) -> None:
    names = names_of(family)
    assert names is not None
    assert names.loads(name, host) is loaded


def test_tails_count_too() -> None:
    base = "transformer.transformer_blocks.0.attn.to_q"
    dora = {f"{base}.lora_A.weight": (4, 8), f"{base}.lora_magnitude_vector": (8,)}
    told = {each.host: each for each in judge(dora, "flux")}
    assert told["ComfyUI"].missed == (f"{base}.lora_magnitude_vector",)
    assert told["ComfyUI"].text.startswith("loads 1 of 2 keys, not ")
    assert told["A1111"].text == "does not run this family"


def test_forge_leaves_out_a_file_with_many_strange_keys() -> None:
    good = lora_keys([f"transformer.transformer_blocks.{n}.attn.to_q" for n in range(19)], 8, 8)
    strange = lora_keys([f"transformer.roof.{n}" for n in range(7)], 8, 8)
    told = {each.host: each.loaded for each in judge({**good, **strange}, "flux")}
    assert (told["ComfyUI"], told["Forge"]) == (38, 0)


def blocks(name: str, count: int, out: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return lora_keys([name.replace("#", str(n)) for n in range(count)], out, inputs)


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("flux", blocks("transformer.transformer_blocks.#.attn.to_q", 19, 3072, 3072)),
        ("qwen_image", blocks("transformer.transformer_blocks.#.attn.to_q", 60, 3072, 3072)),
        ("sd3", blocks("transformer.transformer_blocks.#.attn.to_q", 24, 1536, 1536)),
        ("sd3", blocks("transformer.transformer_blocks.#.attn.to_q", 38, 2432, 2432)),
        ("flux2", blocks("transformer.transformer_blocks.#.attn.to_q", 8, 6144, 6144)),
        ("flux2", blocks("diffusion_model.single_blocks.#.linear1", 20, 27648, 3072)),
        ("flux", blocks("diffusion_model.single_blocks.#.linear1", 38, 21504, 3072)),
        ("krea2", blocks("diffusion_model.transformer_blocks.#.attn.to_k", 28, 1536, 6144)),
        ("z_image", blocks("lora_unet_layers_#_attention_qkv", 30, 11520, 3840)),
        ("lumina2", blocks("diffusion_model.layers.#.attention.qkv", 26, 3840, 2304)),
        ("ideogram4", blocks("diffusion_model.layers.#.attention.qkv", 34, 13824, 4608)),
        ("anima", blocks("lora_unet_blocks_#_self_attn_q_proj", 28, 2048, 2048)),
        ("hidream", blocks("diffusion_model.double_stream_blocks.#.block.attn1.to_q", 16, 8, 8)),
    ],
)
def test_a_family_is_told_by_names_and_sizes(
    family: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    found = family_of_keys(shapes)
    assert found is not None
    assert found[0].family == family
    assert len(found[1]) * 2 == len(shapes)


def test_chroma_is_told_by_what_the_file_says(tmp_path: Path) -> None:
    flux, chroma = names_of("flux"), names_of("chroma")
    assert flux and chroma
    adapter = family_adapter(chroma, only=("attn.to_q",))
    path = write_adapter(adapter, tmp_path / "a.safetensors", "kohya")
    assert read_adapter(path).family == "chroma"
    plain = {k: t.clone() for k, t in storage.read_tensors(path).items()}
    storage.write_tensors(tmp_path / "b.safetensors", plain)
    assert read_adapter(tmp_path / "b.safetensors").family == "flux"


def test_what_no_family_has_is_kept_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = ["diffusion_model.roof.0.tile", "lora_unet_wall_0_brick", "door"]
    modules = {f"other.{name}": weights_for(torch.ones(8, 8), "lora") for name in raw}
    path = write_adapter(Adapter(modules), tmp_path / "a.safetensors", "host")
    again = read_adapter(path)
    assert again.family is None
    same(Adapter(modules), again)
    assert main(["inspect", str(path)]) == 0
    assert "unknown" in capsys.readouterr().out
    out = tmp_path / "b.safetensors"
    assert main(["merge", f"{path}:0.5", f"{path}:0.5", "--out", str(out)]) == 0
    same(again, read_adapter(out))
    assert main(["resize", str(path), str(tmp_path / "c.safetensors"), "--rank", "2"]) == 0
    assert {w.rank for w in read_adapter(tmp_path / "c.safetensors").modules.values()} == {2}


@by_family
def test_tools(names: LayerNames, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    adapter = family_adapter(names, only=("to_q", "to_k", "to_v"), blocks=1)
    path = write_adapter(adapter, tmp_path / "a.safetensors", "kohya")
    assert main(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == names.family
    assert [each["host"] for each in told["hosts"]][-1] == "diffusers"
    assert names.label in told["label"]
    separate = write_adapter(adapter, tmp_path / "b.safetensors", "diffusers")
    out = tmp_path / "c.safetensors"
    assert main(["merge", f"{path}:0.25", f"{separate}:0.75", "--out", str(out)]) == 0
    back = write_adapter(read_adapter(out), tmp_path / "d.safetensors", "diffusers")
    same(adapter, read_adapter(back))
    assert main(["resize", str(path), str(out), "--rank", "1", "--layout", "kohya"]) == 0
    assert {w.rank for w in read_adapter(out).modules.values()} == {1}
    assert main(["convert", str(out), str(tmp_path / "e.safetensors"), "--layout", "comfyui"]) == 0


def test_two_families_do_not_merge(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths: list[Path] = []
    for family in ("z_image", "qwen_image"):
        names = names_of(family)
        assert names is not None
        adapter = family_adapter(names, only=("to_q",))
        paths.append(write_adapter(adapter, tmp_path / f"{family}.safetensors", "host"))
    out = tmp_path / "out.safetensors"
    assert main(["merge", *map(str, paths), "--out", str(out)]) == 2
    assert "different kinds of base: qwen_image, z_image" in capsys.readouterr().err
    assert not out.exists()


def test_a_layer_that_is_changed_twice_is_not_merged_once() -> None:
    names = names_of("z_image")
    assert names is not None
    whole, part = names.fused[0].native, names.fused[0].parts[0]
    sizes = {f"transformer.{whole}": 36, f"transformer.{part}": 12}
    both = {
        n.replace("#", "0"): weights_for(torch.ones(rows, 12), "lora") for n, rows in sizes.items()
    }
    with pytest.raises(Unsupported, match="twice, fused and separately"):
        merge([Part(Adapter(both, family="z_image"))])


def test_rotations_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    names = names_of("flux")
    assert names is not None
    adapter = family_adapter(names, "oft", only=("attn.to_q",), blocks=1)
    with pytest.raises(Unsupported, match="not a rotation of the fused one") as caught:
        write_adapter(adapter, tmp_path / "a.safetensors", "kohya")
    assert "double_blocks.0.img_attn.qkv" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "hosts"),
    [
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
            {"A1111", "Forge", "Forge Neo", "ComfyUI", "diffusers"},
        ),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
            {"A1111", "Forge", "Forge Neo", "ComfyUI", "diffusers"},
        ),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            {"diffusers"},
        ),
        (
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight",
            {"Forge", "Forge Neo", "ComfyUI"},
        ),
        ("base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight", set()),
    ],
)
def test_stable_diffusion_in_the_hosts(key: str, hosts: set[str]) -> None:
    told = judge({key: (4, 4)}, "sd1")
    assert {each.host for each in told if each.loaded} == hosts


@pytest.mark.parametrize(
    ("family", "name", "hosts"),
    [
        (
            "flux",
            "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
            {"ComfyUI", "Forge", "Forge Neo"},
        ),
        ("sd3", "lora_te3_encoder_block_0_layer_0_SelfAttention_q", {"ComfyUI", "Forge"}),
        ("z_image", "lora_te_layers_0_self_attn_q_proj", {"ComfyUI"}),
        ("anima", "lora_te_layers_0_self_attn_q_proj", {"ComfyUI", "Forge Neo"}),
        (
            "flux",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            {"ComfyUI", "Forge", "Forge Neo", "diffusers"},
        ),
    ],
)
def test_text_encoders_of_the_newer_families(family: str, name: str, hosts: set[str]) -> None:
    assert {e.host for e in judge({f"{name}.alpha": ()}, family) if e.loaded} == hosts


def test_what_cannot_be_joined_is_not_lost(tmp_path: Path) -> None:
    names = names_of("lumina2")
    assert names is not None
    adapter = family_adapter(names, "dora", only=("to_q",), blocks=1)
    path = write_adapter(adapter, tmp_path / "a.safetensors", "host")
    keys = shapes_of(path)
    assert "transformer.layers.0.attn.to_q.dora_scale" in keys
    told = {each.host: each for each in judge(keys, "lumina2")}
    assert told["ComfyUI"].loaded == 0
    assert set(read_adapter(path).modules) == set(adapter.modules)


def test_a_written_file_that_hosts_pass_over_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = names_of("anima")
    assert names is not None
    path = write_adapter(family_adapter(names, only=("to_q",)), tmp_path / "a.safetensors", "host")
    out = tmp_path / "b.safetensors"
    assert main(["convert", str(path), str(out), "--layout", "diffusers"]) == 0
    assert "warning: not every host loads the whole adapter: Forge Neo" in capsys.readouterr().out
    assert main(["convert", str(out), str(tmp_path / "c.safetensors"), "--json"]) == 0
    told = {each["host"]: each for each in json.loads(capsys.readouterr().out)["hosts"]}
    assert told["ComfyUI"]["loaded"] == told["ComfyUI"]["total"]
