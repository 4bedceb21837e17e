"""Loading, applying, saving, merging and the other tools, through the warm helper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from comfy_nodes.adapters import is_host_named
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.single_read import read_single_file
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.adapters.apply import bake
from dreambooth_core.formats.adapters.merge import Part
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.storage import read_metadata
from tests.helpers.adapters import adapter_for, assert_same_change, base_of, parts_of, states_of


@pytest.fixture
def two(host: Any, run: Any) -> tuple[Any, Any]:
    """Two loaded adapters: of rank 4, and of rank 2."""
    found = []
    for name, rank in (("a", 4), ("b", 2)):
        adapter = adapter_for("sd1", rank=rank, seed=rank, every=5)
        write_adapter(adapter, host.loras() / f"{name}.safetensors", "kohya", dtype=torch.float32)
        found.append(run("DreamBoothLoadAdapter", lora=f"{name}.safetensors")[0])
    return found[0], found[1]


def test_what_the_host_takes_is_not_touched(run: Any, host: Any, two: Any) -> None:
    assert two[0].path == host.loras() / "a.safetensors"
    assert "this host takes" in run.lines[0]
    assert is_host_named(two[0].path)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_other_names_are_converted_once(run: Any, host: Any, layout: str) -> None:
    adapter = adapter_for("sd1", every=7)
    ending = "" if layout == "peft" else ".safetensors"
    path = write_adapter(adapter, host.loras() / f"x{ending}", layout, dtype=torch.float32)
    path = path if path.is_file() else next(path.rglob("*.safetensors"))
    listed = path.relative_to(host.loras()).as_posix()
    (loaded,) = run("DreamBoothLoadAdapter", lora=listed)
    assert is_host_named(loaded.path)
    assert loaded.path.is_relative_to(host.output)
    assert_same_change(read_adapter(loaded.path), read_adapter(path), base_of("sd1"), 1e-6)
    stamp = loaded.path.stat().st_mtime_ns
    (again,) = run("DreamBoothLoadAdapter", lora=listed)
    assert again.path.stat().st_mtime_ns == stamp


def test_apply(run: Any, host: Any, two: Any) -> None:
    from comfy.sd import load_checkpoint_guess_config  # type: ignore[import-not-found]

    model, clip, *_ = load_checkpoint_guess_config("base")
    patched, words = run(
        "DreamBoothApplyAdapter",
        model=model,
        clip=clip,
        adapter=two[0],
        strength_model=0.5,
        strength_clip=0.25,
    )
    assert set(map(tuple, patched.patches.values())) == {(0.5,)}
    assert set(map(tuple, words.patches.values())) == {(0.25,)}
    same = run(
        "DreamBoothApplyAdapter",
        model=model,
        clip=clip,
        adapter=two[0],
        strength_model=0.0,
        strength_clip=0.0,
    )
    assert same == (model, clip)
    given = {"model": model, "clip": clip, "adapter": two[0], "strength_model": 0.5}
    only, same_words = run(
        "DreamBoothApplyAdapter", block_preset="OUT only", blocks="BASE=0", **given
    )
    assert set(only.patches) == {key for key in patched.patches if "_up_blocks_" in key} != set()
    assert set(map(tuple, only.patches.values())) == {(0.5,)} and not same_words.patches
    with pytest.raises(UserError, match="is no share of the sampling"):
        run("DreamBoothApplyAdapter", schedule="2=1", **given)
    alone = run("DreamBoothApplyAdapter", model=model, adapter=two[0])
    assert alone[0].patches and alone[1] is None


def test_an_adapter_that_changes_nothing_is_an_error(run: Any, host: Any) -> None:
    from comfy.sd import load_checkpoint_guess_config

    from comfy_nodes.adapters import Adapter
    from dreambooth_core.formats.storage import write_tensors

    model, clip, *_ = load_checkpoint_guess_config("base")
    path = host.loras() / "strange.safetensors"
    write_tensors(path, {"transformer.x.lora_A.weight": torch.zeros(1)}, {})
    with pytest.raises(UserError, match="no weight of this model is changed"):
        run("DreamBoothApplyAdapter", model=model, clip=clip, adapter=Adapter(path, "strange"))


def test_info(run: Any, two: Any) -> None:
    (text,) = run("DreamBoothAdapterInfo", adapter=two[0])
    assert "method: " in text and "ranks: 4" in text
    assert text.splitlines() == run.lines


def test_save(run: Any, host: Any, two: Any) -> None:
    picture = torch.zeros(2, 32, 32, 3)
    inputs = {"adapter": two[0], "name": "pets/dog", "trigger_words": "sks dog", "preview": picture}
    assert run("DreamBoothSaveAdapter", **inputs) == (str(Path("pets/dog.safetensors")),)
    saved = host.loras() / "pets" / "dog.safetensors"
    assert read_metadata(saved)["modelspec.trigger_phrase"] == "sks dog"
    assert_same_change(read_adapter(saved), read_adapter(two[0].path), base_of("sd1"))
    with Image.open(saved.with_suffix(".png")) as preview:
        assert preview.size == (32, 32)
    assert run("DreamBoothSaveAdapter", **inputs) == (str(Path("pets/dog-2.safetensors")),)
    assert run("DreamBoothSaveAdapter", adapter=two[1]) == ("b-2.safetensors",)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out"])
def test_nothing_is_written_elsewhere(run: Any, two: Any, name: str) -> None:
    with pytest.raises(UserError, match="not a file name inside"):
        run("DreamBoothSaveAdapter", adapter=two[0], name=name)


def test_merge_is_exact(run: Any, two: Any) -> None:
    inputs = {"adapter_1": two[0], "weight_1": 0.7, "adapter_3": two[1], "weight_3": -0.4}
    (merged,) = run("DreamBoothMergeAdapters", **inputs)
    base = base_of("sd1")
    parts = [read_adapter(one.path) for one in two]
    for name, weights in read_adapter(merged.path).modules.items():
        wanted = 0.7 * parts[0].modules[name].delta(base[name])
        wanted = wanted - 0.4 * parts[1].modules[name].delta(base[name])
        assert torch.allclose(weights.delta(base[name]), wanted, atol=1e-5)
    with pytest.raises(UserError, match="nothing to merge"):
        run("DreamBoothMergeAdapters")


def test_any_number_by_the_stack(run: Any, two: Any) -> None:
    (stack,) = run("DreamBoothWeightedAdapter", adapter=two[0], weight=0.5, text_weight=0.0)
    for _ in range(5):
        (stack,) = run("DreamBoothWeightedAdapter", adapter=two[1], weight=0.1, stack=stack)
    (merged,) = run("DreamBoothMergeAdapters", stack=stack, method="svd", rank=2)
    assert run.lines[0].startswith("6 adapters by svd, rank 2")
    assert {w.rank for w in read_adapter(merged.path).modules.values()} == {2}


def test_resize(run: Any, two: Any) -> None:
    (small,) = run("DreamBoothResizeAdapter", adapter=two[0], rank=1)
    assert {w.rank for w in read_adapter(small.path).modules.values()} == {1}
    with pytest.raises(UserError, match="neither a rank nor an energy"):
        run("DreamBoothResizeAdapter", adapter=two[0], rank=0)


def test_bake_extract_and_convert(run: Any, host: Any, two: Any) -> None:
    parts = parts_of("sd1")
    write_single_file(parts, host.checkpoints() / "base.safetensors")
    given = {"checkpoint": "base.safetensors", "adapter": two[0], "weight": 0.5}
    assert run("DreamBoothBakeCheckpoint", **given) == ("base-a.safetensors",)
    baked = read_single_file(host.checkpoints() / "base-a.safetensors")
    wanted, _ = bake(states_of("sd1"), [Part(read_adapter(two[0].path), 0.5)])
    assert_equal_unet(baked, wanted["unet"])

    (found,) = run(
        "DreamBoothExtractAdapter", base="base.safetensors", tuned="base-a.safetensors", rank=8
    )
    assert set(read_adapter(found.path).modules) == set(read_adapter(two[0].path).modules)

    convert = {"checkpoint": "base.safetensors", "name": "half", "dtype": "fp16"}
    assert run("DreamBoothConvertCheckpoint", **convert) == ("half.safetensors",)
    half = read_single_file(host.checkpoints() / "half.safetensors")
    assert half.components["unet"].tensors["conv_in.weight"].dtype == torch.float16
    folder = {"checkpoint": "base.safetensors", "name": "f", "layout": "diffusers folder"}
    assert run("DreamBoothConvertCheckpoint", **folder) == ("f",)
    assert (host.root / "models" / "diffusers" / "f" / "model_index.json").is_file()


def assert_equal_unet(parts: ModelParts, wanted: dict[str, torch.Tensor]) -> None:
    for name, tensor in parts.components["unet"].tensors.items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def test_the_cache_sees_files_change(host: Any, two: Any) -> None:
    from comfy_nodes.adapters import look_at_file
    from comfy_nodes.tools import look_at_checkpoints

    before = look_at_file(lora="a.safetensors")
    path = host.loras() / "a.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert look_at_file(lora="a.safetensors") != before
    assert look_at_file(lora="gone.safetensors") == ""
    (host.checkpoints() / "c.safetensors").write_bytes(b"1")
    one = look_at_checkpoints(checkpoint="c.safetensors")
    (host.checkpoints() / "c.safetensors").write_bytes(b"22")
    assert look_at_checkpoints(checkpoint="c.safetensors") != one
    assert Path(path).exists()
