"""Adapters that contradict themselves: one clear line that names module and tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.apply import bake
from dreambooth_core.formats.adapters.extract import extract
from dreambooth_core.formats.adapters.lowrank import Keep
from dreambooth_core.formats.adapters.merge import METHODS, Part, Plan, merge
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights
from dreambooth_core.formats.adapters.peft_config import METADATA_KEY, PeftSettings
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.resize import resize
from dreambooth_core.formats.adapters.write import write_adapter
from tests.faults.inputs import _adapters as inputs
from tests.helpers.mutations import mutated

MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def read(path: Path, method: str, **changes: Tensor | None) -> Adapter:
    return read_adapter(path / inputs.write(path, inputs.adapter(method, **changes), "safetensors"))


@pytest.mark.parametrize(
    ("method", "tail", "value", "reason"),
    [
        ("lora", "lora_down.weight", torch.ones(5, 32), r"lora_up has shape \[32, 4\], \[32, 5\]"),
        ("lora", "lora_down.weight", torch.tensor(1.0), "neither a matrix nor a convolution"),
        ("lora", "lora_down.weight", torch.ones(0, 32), "is not a weight"),
        ("lora", "lora_up.weight", torch.ones(32, 4).bool(), "bool, is not a weight"),
        ("lora", "lora_up.weight", torch.ones(32, 4) * 1j, "complex64, is not a weight"),
        ("lora", "lora_up.weight", torch.full((32, 4), torch.inf), "lora_up.*NaN or infinity"),
        ("lora", "alpha", torch.tensor(torch.nan), "alpha holds NaN"),
        ("lora", "alpha", torch.ones(2), "is not a number"),
        ("lora", "alpha", torch.tensor(1e38), r"alpha is 1e\+38, more than"),
        ("lora", "diff_b", torch.ones(31), "diff_b has shape"),
        ("lora", "hada_t1", torch.ones(4, 4), "hada_t1 does not go with down"),
        ("tucker", "lora_mid.weight", torch.ones(4, 3, 3, 3), "lora_mid has shape"),
        ("dora", "dora_scale", torch.ones(31, 1), "dora_scale has shape"),
        ("loha", "hada_w2_b", torch.ones(5, 32), "hada_w2_b has shape"),
        ("loha", "hada_t1", torch.ones(4, 4, 3, 3), "one of two Tucker cores"),
        ("lokr", "lokr_w1", None, "lacks its tensor 'lokr_w1_a'"),
        ("lokr", "lokr_w2", torch.ones(16, 16), "both in full and as a product"),
        ("oft", "oft_blocks", torch.ones(8, 4, 3), "no square blocks"),
        ("diff", "diff", torch.ones(1, 1, 1, 1, 2), "diff has shape"),
        ("lora", "lora_up.weight", None, "lacks its tensor 'up'"),
    ],
)
def test_a_module_that_is_none_is_named(tmp_path, method, tail, value, reason):
    with pytest.raises(UserError, match=rf"a\.safetensors: .*to_q.*{reason}|conv1.*{reason}"):
        read(tmp_path, method, **{tail: value})


@pytest.mark.parametrize("shape", [(8, 5), (8, 6, 1)])
def test_an_oft_of_peft_without_a_square_is_refused(tmp_path, shape):
    save_file({f"{MODULE}.oft_R.weight": torch.ones(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="oft_R has"):
        read_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_read_exactly(tmp_path, dtype):
    down = torch.randn(4, 32).to(dtype)
    found = read(tmp_path, "lora", **{"lora_down.weight": down}).modules[MODULE]
    assert isinstance(found, LoraWeights) and found.down.dtype == torch.float16
    assert torch.equal(found.down.float(), down.float())


def test_a_change_out_of_all_measure_is_not_multiplied_out(tmp_path):
    tall, wide = torch.ones(200_000, 1), torch.ones(1, 200_000)
    with pytest.raises(UserError, match="larger than any model has"):
        read(tmp_path, "lora", **{"lora_down.weight": wide, "lora_up.weight": tall})
    with pytest.raises(UserError, match="a rank of 5,000"):
        thin = {"lora_down.weight": wide[:, :32].expand(5000, 32).clone()}
        read(tmp_path, "lora", **thin, **{"lora_up.weight": tall[:32].expand(32, 5000).clone()})


def test_a_lenient_reader_shows_what_a_strict_one_refuses(tmp_path):
    save_file(inputs.adapter("lora", alpha=torch.tensor(torch.nan)), tmp_path / "a.safetensors")
    assert len(read_adapter(tmp_path / "a.safetensors", strict=False).modules) == 1


def lora_of(size: float, shape: tuple[int, int] = (32, 32)) -> Adapter:
    weights = LoraWeights(torch.full((4, shape[1]), size), torch.full((shape[0], 4), size), 4.0)
    return Adapter({MODULE: weights})


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_different_sizes_are_not_merged(method):
    with pytest.raises(UserError, match="different sizes"):
        merge([Part(lora_of(1.0)), Part(lora_of(1.0, (16, 64)))], Plan(method))


@pytest.mark.parametrize("method", [m for m in METHODS if m.endswith("_svd")])
def test_a_merge_that_overflows_is_refused(method):
    with pytest.raises(UserError, match="NaN or infinity"):
        merge([Part(lora_of(1e25))], Plan(method))


def test_results_that_overflow_replace_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with pytest.raises(UserError, match=r"not saved: lora_down.*float16.*Store it in fp32"):
        write_adapter(lora_of(1e5), path, dtype=torch.float16)
    assert path.read_text() == "old"
    states = {"unet": {f"{MODULE.removeprefix('unet.')}.weight": torch.ones(32, 32).half()}}
    with pytest.raises(UserError, match="NaN or infinity in float16"):
        bake(states, [Part(lora_of(1e4))])
    with pytest.raises(UserError, match="NaN or infinity"):
        resize(Adapter({MODULE: DiffWeights(torch.full((2, 2), torch.inf))}), Keep(rank=2))
    with pytest.raises(UserError, match="numbers are too large"):
        write_adapter(lora_of(1e25), path)
    tuned = {"unet": {"a.weight": torch.full((2, 2), torch.nan)}}
    with pytest.raises(UserError, match=r"unet\.a\.weight holds NaN or infinity in the trained"):
        extract({"unet": {"a.weight": torch.ones(2, 2)}}, tuned)


@pytest.mark.parametrize(
    "config",
    [
        {"r": "x"},
        {"r": -1},
        {"r": 1.5},
        {"r": True},
        {"lora_alpha": float("inf")},
        {"lora_alpha": [1]},
        {"rank_pattern": [1]},
        {"alpha_pattern": {"a": "x"}},
        {"alpha_pattern": {"(a+)+$": 2}},
        {"alpha_pattern": {".*.*.*x": 2}},
        {"peft_type": {}},
        {"use_rslora": "x"},
        {"base_model_name_or_path": 3},
    ],
)
def test_a_configuration_of_wrong_types_is_refused(config):
    with pytest.raises(UserError):
        PeftSettings.parse(config)


def test_a_damaged_configuration_in_the_header_is_not_passed_over(tmp_path):
    """Without it alpha would be guessed, and the adapter would act at another strength."""
    save_file(inputs.adapter("lora"), tmp_path / "a.safetensors", {METADATA_KEY: "{"})
    with pytest.raises(UserError, match="lora_adapter_metadata' is damaged"):
        read_adapter(tmp_path / "a.safetensors")


SAVED = {method: inputs.adapter(method) for method in inputs.METHODS}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_read_or_refused_in_one_way(tmp_path_factory, data):
    """Keys, shapes and types of a good file, changed at random."""
    tensors = dict(SAVED[data.draw(st.sampled_from(inputs.METHODS))])
    for key in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2, unique=True)):
        tensor = tensors.pop(key)
        shape = data.draw(st.lists(st.sampled_from((0, 1, 2, 4, 8, 32)), max_size=5))
        dtype = data.draw(st.sampled_from((torch.float32, torch.float16, torch.int8)))
        changed = torch.ones(shape, dtype=dtype) if data.draw(st.booleans()) else tensor
        name = data.draw(st.one_of(st.just(key.encode()), mutated(key.encode())))
        tensors[name.decode(errors="replace")] = changed
    path = tmp_path_factory.mktemp("d") / "a.safetensors"
    save_file(tensors, path)
    try:
        adapter = read_adapter(path)
    except UserError:
        return
    for weights in adapter.modules.values():
        if (
            weights.method != "oft"
            and not weights.needs_base
            and weights.tensors().keys() != {"diff_b"}
        ):
            assert bool(weights.delta().isfinite().all())
