"""Every option of ``method`` changes what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.runs import config_for, losses, train
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.adapters.model import DiffWeights
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.methods.adapters import AdapterMethod
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.options import TARGETS, MethodOptions


@pytest.fixture
def parts(base: Path) -> Components:
    return load_base(BaseOptions(model=str(base)))


def attached(parts: Components, **options: object) -> AdapterMethod:
    method = method_for(MethodOptions(**options), parts)  # type: ignore[arg-type]
    method.attach(0)
    assert isinstance(method, AdapterMethod)
    return method


def test_each_part_has_rank_and_alpha_of_its_own(parts: Components) -> None:
    method = attached(
        parts,
        train_text_encoder=True,
        rank=4,
        alpha=2.0,
        text_rank=8,
        text_alpha=6.0,
        target_modules="all",
    )
    modules = method.adapter().modules
    for name, weights in modules.items():
        assert (weights.rank, weights.alpha) == ((4, 2.0) if name.startswith("unet") else (8, 6.0))


def test_the_text_encoders_take_the_unets_values_where_theirs_are_empty(parts: Components) -> None:
    modules = attached(parts, train_text_encoder=True, rank=4, alpha=2.0).adapter().modules
    assert {(w.rank, w.alpha) for w in modules.values()} == {(4, 2.0)}


def adapted(parts: Components, wanted: str) -> set[str]:
    """The denoiser's adapted layers, by diffusers' names."""
    method = method_for(MethodOptions(target_modules=wanted), parts)
    assert isinstance(method, AdapterMethod)
    return set(method.layers(parts.denoiser, "unet"))


def test_target_modules_takes_ends_of_names_and_expressions_for_whole_names(
    parts: Components,
) -> None:
    everywhere = adapted(parts, "all")
    ends = adapted(parts, "attn1.to_q, ff.net.2")
    assert ends == {n for n in everywhere if n.endswith((".attn1.to_q", ".ff.net.2"))} != set()
    whole = adapted(parts, r"down_blocks\..*\.to_(k|v)")
    assert whole == {
        n for n in everywhere if n.startswith("down_blocks.") and n.endswith(("to_k", "to_v"))
    }
    with pytest.raises(UserError, match="no layer that can be adapted"):
        adapted(parts, r"\.to_(k|v)")  # an end, but no whole name


def test_the_text_encoder_keeps_its_attention_layers_where_the_denoisers_are_named(
    parts: Components,
) -> None:
    text = parts.models["text_encoder"]
    found = [
        method_for(MethodOptions(target_modules=wanted), parts).layers(text, "text_encoder")  # type: ignore[attr-defined]
        for wanted in ("attn1.to_q", "attention", "query_value")
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("atention", "Did you mean attention"),
        ("(to_q", "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
        ("(([a-z0-9._])+)+!", "too complicated"),
        (".*" * 30 + "!", "too complicated"),
        ("([a-z.]|.)" * 70, "too complicated"),
        ("[a-z.]?" * 70, "too complicated"),
        (r"(?!.*none).*blocks.*\.\d+\.(attn1|attn2)\.(q|k|v|out)", "no layer"),
    ],
)
def test_target_modules_that_name_nothing(parts: Components, wanted: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        attached(parts, target_modules=wanted)
    assert said in str(refused.value) and refused.value.where == "method.target_modules"


def test_each_part_has_dropout_of_its_own(parts: Components) -> None:
    attached(parts, train_text_encoder=True, dropout=0.25, text_dropout=0.5)
    found = {
        component: {m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0}
        for component, model in parts.models.items()
    }
    assert found == {"unet": {0.25}, "text_encoder": {0.5}}


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_dropout_of_the_relatives(base: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    changes = {"method__kind": kind, "method__rank": 4, "run__steps": 3}
    plain = losses(train(config_for(base, pictures, tmp_path, **changes)))
    changes |= {"method__dropout": 0.8, "run__name": "dropped"}
    assert losses(train(config_for(base, pictures, tmp_path, **changes))) != plain


def test_oft_has_no_dropout(parts: Components) -> None:
    with pytest.raises(UserError, match="oft has no dropout"):
        attached(parts, kind="oft", dropout=0.1)


def test_targets_grow(base: Path) -> None:
    names = []
    for targets in TARGETS:
        parts = load_base(BaseOptions(model=str(base)))
        method = attached(parts, target_modules=targets, train_text_encoder=True)
        names.append(set(method.adapter().modules))
    assert names[0] < names[1] < names[2] < names[3]
    assert any(".conv1" in name for name in names[3] - names[2])


def test_only_the_models_asked_for_are_trained(base: Path) -> None:
    for unet, text in ((True, False), (False, True), (True, True)):
        parts = load_base(BaseOptions(model=str(base)))
        groups = method_for(
            MethodOptions(train_denoiser=unet, train_text_encoder=text), parts
        ).attach(0)
        expected = ["unet"] * unet + ["text_encoder"] * text
        assert [group.component for group in groups] == expected


def test_training_nothing_is_refused(base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        train(config_for(base, pictures, tmp_path, method__train_denoiser="false"))


def test_oft_is_saved_as_the_exact_change(parts: Components) -> None:
    torch.manual_seed(0)
    base = {name: p.clone() for name, p in parts.denoiser.named_parameters()}
    method = attached(parts, kind="oft", rank=4, target_modules="all")
    for parameter in method._trainables[0].parameters.values():
        torch.nn.init.normal_(parameter, std=0.5)
    adapter = method.adapter()
    assert adapter.modules and all(isinstance(w, DiffWeights) for w in adapter.modules.values())
    for name, weights in adapter.modules.items():
        path = name.removeprefix("unet.")
        layer = parts.denoiser.get_submodule(path)
        weight = base[f"{path}.weight"]
        inputs = torch.randn(2, weight.shape[1], *[3] * (weight.ndim - 2))
        changed = weight + weights.delta(weight)
        plain = layer.get_base_layer()
        if weight.ndim == 4:
            expected = nn.functional.conv2d(inputs, changed, plain.bias)
        else:
            expected = nn.functional.linear(inputs, changed, plain.bias)
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-4, atol=1e-5)
        rotated = changed.flatten(1)
        # A rotation keeps the length of every row.
        torch.testing.assert_close(
            rotated.norm(dim=1), weight.flatten(1).norm(dim=1), rtol=1e-4, atol=0
        )


def test_ofts_file_holds_changes_in_full(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = train(config_for(base, pictures, tmp_path, method__kind="oft", run__steps=1))
    adapter = read_adapter(folder.path / f"{folder.name}.safetensors")
    assert all(isinstance(w, DiffWeights) for w in adapter.modules.values())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("oft", "layout", "peft"),
        ("loha", "layout", "diffusers"),
        ("lokr", "arrangement", "diffusers"),
        ("textual_inversion", "arrangement", "peft"),
        ("pivotal", "arrangement", "shivam"),
    ],
)
def test_layouts_without_a_place_for_it_are_refused_at_the_start(
    base: Path, pictures: Path, tmp_path: Path, kind: str, field: str, value: str
) -> None:
    changes = {"method__kind": kind, f"save__{field}": value}
    with pytest.raises(UserError, match="no place"):
        train(config_for(base, pictures, tmp_path, **changes))
